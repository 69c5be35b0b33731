# SPDX-License-Identifier: MIT
"""The program that parses guests' file systems. It imports nothing of vmfs and nothing under the GPL, and
runs in a process of its own, without privileges: what it reads is hostile until proven otherwise."""
