# SPDX-License-Identifier: MIT
"""ext2, ext3 and ext4, after the kernel's Documentation/filesystems/ext4. Numbers are little-endian, those of
the journal big-endian.

Why not The Sleuth Kit: what it leaves out or has wrong (extended attributes, device numbers, nanoseconds,
years before 1970 and from 2106, long symlinks, holes, bigalloc) asks for a parser of inodes and of their
extents, and with these two, directories are thirty lines more. Nothing here can do worse than raise an
exception, where the library was seen to hang.
"""
