"""A weather service for a few cities, with its climate on board: it needs no network."""

import math
from datetime import date
from typing import TypedDict

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

mcp = MCPServer("weather", instructions="Typical weather of cities, by day of the year.")

# Mean temperature in °C and rain in mm a day: in January, and in July.
CLIMATE = {
    "Bergen": ((1.7, 6.6), (15.1, 5.0)),
    "Berlin": ((1.0, 1.6), (19.8, 2.0)),
    "Cairo": ((14.0, 0.2), (28.5, 0.0)),
    "Cape Town": ((21.3, 0.5), (12.6, 2.9)),
    "Hamburg": ((2.1, 2.2), (18.3, 2.6)),
    "Lisbon": ((11.6, 3.2), (23.1, 0.1)),
    "London": ((5.7, 1.9), (19.0, 1.5)),
    "New York": ((1.0, 3.0), (25.3, 3.8)),
    "Oslo": ((-3.1, 1.8), (17.7, 2.7)),
    "Paris": ((5.4, 1.5), (21.2, 2.0)),
    "Shanghai": ((5.2, 2.1), (28.8, 4.9)),
    "Singapore": ((26.6, 7.6), (28.2, 5.0)),
    "Sydney": ((23.5, 2.9), (13.4, 2.3)),
    "Tokyo": ((5.4, 1.9), (25.7, 5.0)),
}


class Forecast(TypedDict):
    city: str
    day: str
    celsius: float
    rain_mm: float
    summary: str


@mcp.tool()
def forecast(city: str, day: date | None = None) -> Forecast:
    """The weather to expect in a city, today or on another day (YYYY-MM-DD)."""
    name = next((known for known in CLIMATE if known.lower() == city.strip().lower()), None)
    if name is None:
        raise ToolError(f"no climate for {city!r}; there is {', '.join(CLIMATE)}")
    day = day or date.today()
    (cold, wet), (warm, dry) = CLIMATE[name]
    # A year is a cosine with its turning points in the middle of January and of July.
    july = (1 - math.cos(2 * math.pi * (day.timetuple().tm_yday - 15) / 365.25)) / 2
    celsius = round(cold + (warm - cold) * july, 1)
    rain = round(wet + (dry - wet) * july, 1)
    sky = "rain" if rain >= 4 else "showers" if rain >= 2 else "sun"
    feel = "hot" if celsius >= 25 else "mild" if celsius >= 12 else "cold"
    return Forecast(
        city=name, day=day.isoformat(), celsius=celsius, rain_mm=rain, summary=f"{feel}, {sky}"
    )


@mcp.tool()
def compare(a: str, b: str, day: date | None = None) -> str:
    """Which of two cities is warmer, today or on another day, and by how much."""
    one, other = forecast(a, day), forecast(b, day)
    warmer, cooler = sorted((one, other), key=lambda each: each["celsius"], reverse=True)
    difference = warmer["celsius"] - cooler["celsius"]
    if not difference:
        return f"{one['city']} and {other['city']} are equally warm: {one['celsius']} °C"
    return f"{warmer['city']} is {difference:.1f} °C warmer than {cooler['city']}"


@mcp.resource("weather://cities")
def cities() -> str:
    """The cities with a climate, one a line."""
    return "\n".join(CLIMATE)


if __name__ == "__main__":
    mcp.run()
