"""Names of objects in the store."""

CONFIG = "config"
KEYS = "keys"
EPOCHS = "epochs"
PACKS = "packs"
INDEX = "index"
POINTS = "points"
NOTES = "notes"
LEASES = "leases"
TRASH = "trash"


def pack(digest: bytes) -> str:
    text = digest.hex()
    return f"{PACKS}/{text[:2]}/{text}"


def index(digest: bytes) -> str:
    return f"{INDEX}/{digest.hex()}"


def epoch(epoch_id: bytes) -> str:
    return f"{EPOCHS}/{epoch_id.hex()}"


def point(point_id: str) -> str:
    return f"{POINTS}/{point_id}"


def key_slot(slot_id: str) -> str:
    return f"{KEYS}/{slot_id}"


def lease(lease_id: str) -> str:
    return f"{LEASES}/{lease_id}"
