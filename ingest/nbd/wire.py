"""Numbers and structures of the NBD protocol (all integers big-endian), as its specification names them:
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md"""

from __future__ import annotations

import struct

INIT_MAGIC = b"NBDMAGIC"
OPTION_MAGIC = b"IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

FLAG_FIXED_NEWSTYLE = 1
FLAG_NO_ZEROES = 2

OPT_ABORT = 2
OPT_LIST = 3
OPT_GO = 7
OPT_STRUCTURED_REPLY = 8
OPT_LIST_META_CONTEXT = 9
OPT_SET_META_CONTEXT = 10

REP_ACK = 1
REP_SERVER = 2
REP_INFO = 3
REP_META_CONTEXT = 4
REP_ERROR = 1 << 31
REP_ERR_UNSUP = REP_ERROR + 1
REP_ERR_POLICY = REP_ERROR + 2
REP_ERR_TLS_REQD = REP_ERROR + 5
REP_ERR_UNKNOWN = REP_ERROR + 6
REP_ERR_SHUTDOWN = REP_ERROR + 7

INFO_EXPORT = 0
INFO_BLOCK_SIZE = 3

SEND_DF = 1 << 7
"""Of an export: the server takes CMD_FLAG_DF."""
CMD_FLAG_DF = 1 << 2

CMD_READ = 0
CMD_DISC = 2
CMD_BLOCK_STATUS = 7

REPLY_FLAG_DONE = 1
REPLY_NONE = 0
REPLY_OFFSET_DATA = 1
REPLY_OFFSET_HOLE = 2
REPLY_BLOCK_STATUS = 5
REPLY_ERROR = (1 << 15) + 1
REPLY_ERROR_OFFSET = (1 << 15) + 2

STATE_ZERO = 1 << 1
"""Of base:allocation: reads as zeros."""
STATE_DIRTY = 1 << 0
"""Of qemu:dirty-bitmap: was written to."""

BASE_ALLOCATION = "base:allocation"
DIRTY_BITMAP = "qemu:dirty-bitmap:"

OPTION = struct.Struct(">8sII")
OPTION_REPLY = struct.Struct(">QIII")
REQUEST = struct.Struct(">IHHQQI")
SIMPLE_REPLY = struct.Struct(">IQ")
STRUCTURED_REPLY = struct.Struct(">HHQI")
STATUS = struct.Struct(">II")

MAX_STRING = 4096
MAX_OPTION_REPLY = 64 * 1024
MAX_OPTION_REPLIES = 10_000
MAX_STATUS_PAYLOAD = 8 * 1024 * 1024 + 4
"""Bytes of one BLOCK_STATUS reply: 2^20 extents, the most that a known server (nbdkit) sends."""
MAX_STATUS_LENGTH = (1 << 32) - (1 << 16)
"""Bytes that one BLOCK_STATUS request may ask for: the most that fits 32 bits and any block size."""
DEFAULT_BLOCK = 512
DEFAULT_MAX_BLOCK = 32 * 1024 * 1024
