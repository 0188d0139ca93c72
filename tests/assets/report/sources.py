"""Sources over hand-made entries, whose fingerprint is what `finish` writes."""

from assets.report.names import Names
from assets.report.results import Source
from assets.settings.profile import load_profiles
from assets.state.store import Store
from tests.assets.axes import CATALOG

PROFILES = load_profiles()
PAPER, STRICT, TUNED = PROFILES["paper"], PROFILES["strict"], PROFILES["tuned"]
NAMES = Names(CATALOG, PAPER)
CURRENT = "made by hand"


def expected(*where: object) -> str:
    return CURRENT


def source_of(profile=PAPER, store: Store | None = None, expected=expected) -> Source:
    return Source(store or Store(), CATALOG, profile, expected)
