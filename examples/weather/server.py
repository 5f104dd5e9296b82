"""Weather for a few cities, from a table of its own: an MCP server in one file.

    cove deploy examples/weather/server.py

It needs no network and no keys, so that it answers the same everywhere.
"""

from mcp.server import MCPServer

mcp = MCPServer("weather")

# mean temperature in degrees Celsius and rainy days, winter to autumn
CLIMATE = {
    "Cairo": ((14, 2), (22, 1), (29, 0), (24, 1)),
    "Lima": ((22, 1), (20, 1), (17, 1), (17, 1)),
    "Oslo": ((-3, 9), (6, 8), (17, 11), (7, 11)),
    "Singapore": ((27, 13), (28, 12), (28, 13), (27, 16)),
    "Tokyo": ((6, 6), (14, 11), (25, 12), (18, 10)),
}
SEASONS = ("winter", "spring", "summer", "autumn")


@mcp.tool()
def list_cities() -> list[str]:
    """The cities there is weather for."""
    return sorted(CLIMATE)


@mcp.tool()
def get_forecast(city: str, season: str = "summer") -> str:
    """What to expect in a city in a season (winter, spring, summer or autumn)."""
    if city not in CLIMATE:
        raise ValueError(f"no weather for {city!r}; there is some for {', '.join(sorted(CLIMATE))}")
    if season not in SEASONS:
        raise ValueError(f"{season!r} is no season; seasons are {', '.join(SEASONS)}")
    degrees, rainy = CLIMATE[city][SEASONS.index(season)]
    return f"{city} in {season}: about {degrees} °C, rain on {rainy} days a month"


if __name__ == "__main__":
    mcp.run("streamable-http")
