"""The axes of the tests' catalogue, and the cell that most tests are about."""

from assets.settings.axes import Axes
from assets.settings.catalog import load_catalog

AXES = Axes(load_catalog())
CATALOG = AXES.catalog
CELL = AXES.parse("tiny|b20-s0")
