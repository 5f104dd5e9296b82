"""Dependencies are resolved by the real uv from the configured index, and installed as layers."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cove.drivers.base import Launch
from cove.drivers.placeholders import filled
from cove.errors import CoveError
from cove.model import Limits
from cove.runtimes import source, uv
from cove.runtimes.python import settle
from cove.runtimes.requirements import declared

V1 = 'from mcp.server.fastmcp import FastMCP\nmcp = FastMCP("weather", host="0.0.0.0", port=9000)\n'
CURRENT = 'from mcp.server import MCPServer\nmcp = MCPServer("weather")\n'
FASTMCP = 'from fastmcp import FastMCP\nmcp = FastMCP("weather")\n'
V1_LOW = (
    "from mcp.server import Server\ns = Server('w')\n@s.list_tools()\nasync def f():\n    pass\n"
)
PEP_723 = """# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "mcp>=2",
#   "idna",
# ]
# ///
"""


def settled(folder: Path) -> tuple[list[str], list[str], list[str]]:
    found = source.read(folder, name=None, fallback="weather")
    needs = settle(found, declared(found))
    return list(needs.lines), list(needs.constraints), list(needs.notes)


@pytest.mark.parametrize(
    ("files", "lines", "constraints", "noted"),
    [
        ({"server.py": V1, "requirements.txt": "mcp"}, ["mcp"], ["mcp<2"], "mcp is resolved as"),
        ({"server.py": V1, "requirements.txt": "mcp[cli]>=1.2"}, ["mcp[cli]>=1.2"], ["mcp<2"],
         "server.py needs the SDK's first version"),
        ({"server.py": V1, "requirements.txt": "mcp>=1,<3"}, ["mcp>=1,<3"], [], ""),
        ({"server.py": V1, "requirements.txt": "mcp==1.9"}, ["mcp==1.9"], [], ""),
        ({"server.py": V1, "requirements.txt": "mcp>=2"}, ["mcp>=2"], [], ""),
        ({"server.py": V1}, ["mcp<2"], [], "no dependencies are declared: mcp<2 added"),
        ({"server.py": V1, "requirements.txt": "idna"}, ["idna", "mcp<2"], [],
         "requirements.txt names no MCP SDK: mcp<2 added"),
        ({"server.py": V1_LOW}, ["mcp<2"], [], "first version"),
        ({"server.py": CURRENT}, ["mcp"], [], "mcp added"),
        ({"server.py": FASTMCP}, ["fastmcp"], [], "fastmcp added"),
        ({"server.py": FASTMCP, "requirements.txt": "fastmcp>=2"}, ["fastmcp>=2"], [], ""),
        ({"server.py": PEP_723 + CURRENT, "requirements.txt": "mcp<2"}, ["mcp>=2", "idna"], [], ""),
        ({"main.py": "from fastapi import FastAPI\napp = FastAPI()"}, ["fastapi", "uvicorn"], [],
         "no dependencies are declared: fastapi and uvicorn added"),
        ({"main.py": "from fastapi import FastAPI\napp = FastAPI()", "requirements.txt": "fastapi"},
         ["fastapi", "uvicorn"], [], "requirements.txt names no uvicorn: uvicorn added"),
        ({"x": "", "cove.toml": "kind = 'web'\ncommand = './x'"}, [], [], ""),
        ({"x": "", "cove.toml": "command = './x'"}, [], [], ""),
        ({"server.py": CURRENT, "cove.toml": "command = 'python server.py'"}, ["mcp"], [], "added"),
        ({"server.py": PEP_723 + CURRENT, "cove.toml": "command = 'python server.py'"},
         ["mcp>=2", "idna"], [], ""),
    ],
)  # fmt: skip
def test_what_is_missing_is_added_and_said(
    files: dict[str, str], lines: list[str], constraints: list[str], noted: str, write: Any
) -> None:
    got_lines, got_constraints, notes = settled(write(files))
    assert (got_lines, got_constraints) == (lines, constraints)
    assert noted in " ".join(notes)
    assert bool(notes) == bool(noted)


def test_requirements_files_are_read_as_pip_reads_them(write: Any) -> None:
    text = """# a comment
idna>=3 ; python_version >= "3.9"  # why
-r more/base.txt
-c limits.txt
--extra-index-url https://wheels.example.com/simple
sniffio \\
    --hash=sha256:00
"""
    folder = write(
        {
            "server.py": CURRENT,
            "requirements.txt": text,
            "more/base.txt": "-r ../requirements.txt\nmcp>=2\n",
            "limits.txt": "anyio<9",
        }
    )
    found = source.read(folder, name=None, fallback="w")
    needs = declared(found)
    assert needs.lines == ('idna>=3 ; python_version >= "3.9"', "mcp>=2", "sniffio")
    assert needs.constraints == ("anyio<9",)
    assert needs.extra_indexes == ("https://wheels.example.com/simple",)
    assert needs.notes == ("requirements.txt: hashes are not checked yet",)


@pytest.mark.parametrize(
    "line",
    [
        "-e .",
        ".",
        "./package",
        "/etc/passwd",
        "package @ file:///tmp/package",
        "package @ git+https://example.com/package",
        "package @ https://example.com/package.tar.gz",
        "package @ http://example.com/package-1-py3-none-any.whl",
        "-r /etc/passwd",
        "-r ../../outside.txt",
        "-c /etc/passwd",
        "--find-links /tmp",
        "--index-url file:///tmp",
        "--trusted-host example.com",
        "--config-settings x=y",
    ],
)
def test_a_requirement_that_could_run_or_read_here_is_refused(line: str, write: Any) -> None:
    folder = write({"server.py": CURRENT, "requirements.txt": "idna\n" + line})
    (folder.parent.parent / "outside.txt").write_text("secret words")
    with pytest.raises(CoveError) as caught:
        declared(source.read(folder, name=None, fallback="w"))
    assert caught.value.code == "bad_source"
    assert "requirements.txt line 2" in caught.value.message
    assert "root:" not in str(caught.value.to_json())
    assert "secret words" not in str(caught.value.to_json())


@pytest.mark.parametrize(
    "files",
    [
        {"requirements.txt": "#" * 1024**2 + "\n"},
        {"pyproject.toml": "#" * 1024**2 + "\n"},
        {"requirements.txt": "-r more.txt\n", "more.txt": "#" * (1024**2 - 5)},
    ],
)
def test_requirements_of_more_than_a_mebibyte_are_refused(
    files: dict[str, str], write: Any
) -> None:
    folder = write({"server.py": CURRENT} | files)
    with pytest.raises(CoveError, match="beyond 1 MiB") as caught:
        declared(source.read(folder, name=None, fallback="w"))
    assert caught.value.code == "bad_source"


@pytest.mark.parametrize(
    "command", ["run --port {port} {{app}}", "run {deps} | cat", "run '{serve}' {nope} $PORT"]
)
async def test_what_a_deployer_wrote_arrives_as_written(
    command: str, write: Any, deploy: Any
) -> None:
    config = f'kind = "web"\nruntime = "command"\ncommand = "{command}"\n'
    config += "[env]\nTEMPLATE = '{port} {{app}} {deps} {\"a\": {serve}} {nope}'\n"
    plan = (await deploy(write({"x": "", "cove.toml": config}))).plan
    launch = Launch(
        id="i", function="f", version=1, argv=plan.argv, env=plan.env, port=9000, code=plan.code,
        deps=None, interpreter=None, limits=Limits(), stdout=-1, stderr=-1,
    )  # fmt: skip
    argv, env = filled(launch, app="/app", deps=None, serve=None, port=4711)
    assert argv[-1].removeprefix("exec ") == command
    assert env["TEMPLATE"] == '{port} {{app}} {deps} {"a": {serve}} {nope}'
    assert env["PORT"] == "4711"


async def test_a_source_that_is_a_package_never_runs_its_setup(
    write: Any, deploy: Any, tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    setup = f"from setuptools import setup\nopen({str(proof)!r}, 'w')\nsetup(name='x')"
    project = '[project]\nname = "x"\nversion = "1"\ndependencies = ["mcp>=2"]\n'
    folder = write({"server.py": CURRENT, "setup.py": setup, "pyproject.toml": project})
    deployed = await deploy(folder)
    assert not proof.exists()
    assert "x" not in deployed.packages()
    assert deployed.said[0] == "dependencies from pyproject.toml"


async def test_nothing_of_an_installed_package_runs_while_it_is_deployed(
    write: Any, deploy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .pth file and a sitecustomize are what a Python runs unasked."""
    proof = tmp_path / "ran"
    write_it = f"open({str(proof)!r}, 'a').write('x')\n"
    name = f"cove_canary_{os.getpid()}"
    wheel(
        tmp_path / f"{name}-1.0-py3-none-any.whl",
        {
            f"{name}.pth": f"import sys; {write_it}",
            "sitecustomize.py": write_it,
            "broken.py": "def (",
            f"{name}/__init__.py": "",
            f"{name}-1.0.dist-info/METADATA": (
                f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            ),
            f"{name}-1.0.dist-info/WHEEL": (
                "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            ),
        },
    )
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_COMPILE_BYTECODE", "1")
    config = f"kind = 'web'\ncommand = 'python -c \"import {name}\"'"
    folder = write({"x": "", "requirements.txt": name, "cove.toml": config})
    deployed = await deploy(folder)
    await deploy(folder)
    assert name in deployed.packages()
    assert not proof.exists()
    assert list(Path(deployed.plan.deps).glob(f"lib/*/site-packages/{name}/__pycache__/*.pyc"))
    # The canary sings where the layer's own Python runs, as it does in an instance.
    subprocess.run([f"{deployed.plan.deps}/bin/python", "-c", ""], check=True, timeout=60)
    assert proof.exists()


def wheel(path: Path, files: dict[str, str]) -> None:
    record = next(name for name in files if name.endswith("/WHEEL")).replace("WHEEL", "RECORD")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "".join(f"{name},,\n" for name in [*files, record]))


async def test_the_tutorials_file_gets_the_sdk_it_was_written_for(write: Any, deploy: Any) -> None:
    deployed = await deploy(write({"server.py": V1, "requirements.txt": "mcp"}))
    assert deployed.packages()["mcp"].startswith("1.")
    assert any("mcp<2" in note for note in deployed.plan.notes)
    assert deployed.plan.argv[:4] == ("{deps}/bin/python", "{serve}", "--app", "server:mcp")


async def test_metadata_in_the_entry_wins_and_is_installed_once(write: Any, deploy: Any) -> None:
    folder = write({"server.py": PEP_723 + CURRENT, "requirements.txt": "nonsense-cove-package"})
    first, second = await deploy(folder), await deploy(folder)
    assert {"mcp", "idna"} <= set(first.packages())
    assert first.plan == second.plan
    assert "installing dependencies" not in second.said
    assert first.said[0] == "dependencies from server.py (PEP 723)"


@pytest.mark.parametrize(
    ("requirements", "said", "hint"),
    [
        ("anyio<3\nanyio>4", "unsatisfiable", "contradict"),
        ("docopt==0.6.2", "no usable wheels", "wheels only until builds are sandboxed"),
        ("cove-has-no-such-package", "not found", "spelt right"),
    ],
)
async def test_what_cannot_be_resolved_comes_with_uvs_words_and_a_hint(
    requirements: str, said: str, hint: str, write: Any, deploy: Any
) -> None:
    with pytest.raises(CoveError) as caught:
        await deploy(write({"server.py": CURRENT, "requirements.txt": requirements + "\nmcp"}))
    assert caught.value.code == "resolve_failed"
    assert said in " ".join(caught.value.lines)
    assert hint in caught.value.hint


async def test_a_python_that_is_not_there_is_an_error_that_lists_those_that_are(
    write: Any, deploy: Any
) -> None:
    with pytest.raises(CoveError) as caught:
        await deploy(write({"server.py": CURRENT, "cove.toml": 'runtime = "python3.99"'}))
    assert caught.value.code == "bad_source"
    assert f"python3.{sys.version_info.minor}" in caught.value.hint


async def test_the_interpreter_is_the_real_one_under_its_own_prefix(
    write: Any, deploy: Any
) -> None:
    deployed = await deploy(write({"a.txt": "", "cove.toml": 'kind="web"\ncommand="python -V"'}))
    interpreter = deployed.plan.interpreter
    assert interpreter is not None
    assert interpreter.executable == os.path.realpath(interpreter.executable)
    assert interpreter.executable.startswith(os.path.realpath(sys.base_prefix) + "/")
    config = (Path(deployed.plan.deps) / "pyvenv.cfg").read_text()
    assert f"home = {os.path.dirname(interpreter.executable)}" in config


async def test_another_python_of_this_machine_is_used_where_it_is_asked_for(
    write: Any, deploy: Any
) -> None:
    ours = f"3.{sys.version_info.minor}"
    others = [v for v in ("3.12", "3.13", "3.10") if v != ours and await exists(v)]
    asked = [*others, ours][0]
    folder = write({"a.txt": "", "cove.toml": f'runtime="python{asked}"\nkind="web"\ncommand="x"'})
    deployed = await deploy(folder)
    answer = subprocess.run(
        [f"{deployed.plan.deps}/bin/python", "-c", "import sys; print(sys.version)"],
        capture_output=True,
        check=True,
        text=True,
    )
    assert answer.stdout.startswith(asked + ".")


async def test_a_project_that_needs_a_newer_python_gets_it_or_is_told(
    write: Any, deploy: Any
) -> None:
    newer = f">=3.{sys.version_info.minor + 1}"
    project = f'[project]\nname = "x"\nrequires-python = "{newer}"\n'
    folder = write({"pyproject.toml": project, "cove.toml": 'kind="web"\ncommand="x"'})
    if await exists(newer):
        deployed = await deploy(folder)
        assert int(deployed.plan.interpreter.version.split(".")[1]) > sys.version_info.minor
    else:
        with pytest.raises(CoveError, match=f"Python {newer} is not on this machine"):
            await deploy(folder)


async def exists(version: str) -> bool:
    try:
        await uv.run(["python", "find", version, "--system", "--no-project"])
    except CoveError:
        return False
    return True
