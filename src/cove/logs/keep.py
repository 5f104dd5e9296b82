"""The keeper's program: holds instances' output open, so that it outlives the Cove that reads it.

Run as a process of its own by `cove.logs.keeper`, on the standard library alone. A fifo that
nobody has open forgets what it holds; as long as the keeper has it open, an instance's last
words wait for the next Cove, whichever of the two ended first. It reads nothing but its own
commands, and ends by itself when it holds nothing and no Cove is there.

    keep.py FOLDER ALIVE     FOLDER has the fifos, `.control` and `.keeper`; ALIVE is a file that
                             a running Cove has locked
"""

import array
import contextlib
import fcntl
import os
import resource
import select
import sys
import termios

CONTROL, LOCK = ".control", ".keeper"
HOLD, DROP, END = b"+", b"-", b"."
LOOK_SECONDS = 2.0


class Keep:
    def __init__(self, folder: str, alive: str) -> None:
        self.folder = folder
        self.alive = alive
        self.held: dict[str, int] = {}

    def hold(self, name: str) -> None:
        if name not in self.held:
            with contextlib.suppress(OSError):
                path = os.path.join(self.folder, name)
                self.held[name] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def drop(self, name: str) -> None:
        held = self.held.pop(name, None)
        if held is not None:
            os.close(held)

    def obey(self, commands: list[bytes]) -> bool:
        """Do as told; whether to stay."""
        for command in commands:
            name = command[1:].decode()
            if command[:1] == HOLD:
                self.hold(name)
            elif command[:1] == DROP:
                self.drop(name)
            elif command[:1] == END and not self.held:
                return False
        return True

    def look(self) -> bool:
        """Let go of what is empty and can get nothing more; whether there is a reason to stay."""
        if not os.path.exists(os.path.join(self.folder, CONTROL)):
            return False  # the folder has been removed, and all that could be read in it
        for name, held in list(self.held.items()):
            poll = select.poll()
            poll.register(held, select.POLLIN)
            hung_up = any(event & select.POLLHUP for _, event in poll.poll(0))
            if hung_up and not waiting(held):
                self.drop(name)
        return bool(self.held) or self.cove_lives()

    def cove_lives(self) -> bool:
        with contextlib.suppress(OSError):
            lock = os.open(self.alive, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return True
            finally:
                os.close(lock)
        return False


def waiting(fifo: int) -> int:
    """How many bytes a fifo holds."""
    count = array.array("i", [0])
    fcntl.ioctl(fifo, termios.FIONREAD, count)
    return count[0]


def main(folder: str, alive: str) -> None:
    lock = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # another one keeps
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    keep = Keep(folder, alive)
    control = os.open(os.path.join(folder, CONTROL), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    for name in os.listdir(folder):
        if not name.startswith("."):
            keep.hold(name)
    rest = b""
    while keep.look():
        ready, _, _ = select.select([control], [], [], LOOK_SECONDS)
        if ready:
            *whole, rest = (rest + os.read(control, 65536)).split(b"\n")
            if not keep.obey(whole):
                return


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
