# SPDX-License-Identifier: MIT
"""Parts of the lab: whole hosts in QEMU on one machine. See tests/lab/README.md."""
