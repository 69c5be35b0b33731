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


def pack_digest(name: str) -> bytes | None:
    """The digest that an object's name states; None for a name that no pack has."""
    try:
        digest = bytes.fromhex(name.rsplit("/", 1)[1])
    except ValueError:
        return None
    return digest if len(digest) == 32 and pack(digest) == name else None


def index(digest: bytes) -> str:
    return f"{INDEX}/{digest.hex()}"


def epoch(epoch_id: bytes) -> str:
    return f"{EPOCHS}/{epoch_id.hex()}"


def epoch_id(name: str) -> bytes | None:
    """The id that an object's name states; None for a name that no epoch has."""
    try:
        found = bytes.fromhex(name.rsplit("/", 1)[1])
    except ValueError:
        return None
    return found if len(found) == 8 and epoch(found) == name else None


def point(point_id: str) -> str:
    return f"{POINTS}/{point_id}"


def note(point_id: str, note_id: str) -> str:
    return f"{NOTES}/{point_id}/{note_id}"


def note_ids(name: str) -> tuple[str, str] | None:
    """(point id, note id) that an object's name states; None for a name that no note has."""
    parts = name.split("/")
    return (parts[1], parts[2]) if len(parts) == 3 and parts[0] == NOTES else None


def key_slot(slot_id: str) -> str:
    return f"{KEYS}/{slot_id}"


def lease(lease_id: str) -> str:
    return f"{LEASES}/{lease_id}"
