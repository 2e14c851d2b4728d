# SPDX-License-Identifier: MIT
# Installation: the command, its unit, man pages and completion; the hypervisor and what makes GRUB's menu entries for it. DESTDIR stages
# it, PREFIX moves the command. A configuration file that is there already stays.

BINDIR := $(DESTDIR)$(PREFIX)/bin
UNITDIR := $(DESTDIR)$(PREFIX)/lib/systemd/system
MANDIR := $(DESTDIR)$(PREFIX)/share/man
COMPLETIONDIR := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
BOOTDIR := $(DESTDIR)/boot/pagurus
GRUBDIR := $(DESTDIR)/etc/grub.d
GRUBCONFIG := $(DESTDIR)/etc/default/grub.d/pagurus.cfg
LIBDIR := $(DESTDIR)/usr/lib/pagurus

.PHONY: install

install: $(TOOL) $(BLK) build/vmm/pagurus
	install -D -m 755 $(TOOL) $(BINDIR)/pagurus
	install -d $(UNITDIR)
	sed 's,/usr/bin/,$(PREFIX)/bin/,' tools/pagurus.service > $(UNITDIR)/pagurus.service
	chmod 644 $(UNITDIR)/pagurus.service
	install -D -m 644 -t $(MANDIR)/man1 docs/man/*.1
	install -D -m 644 -t $(MANDIR)/man8 docs/man/*.8
	install -D -m 644 tools/completion/pagurus $(COMPLETIONDIR)/pagurus
	install -D -m 644 build/vmm/pagurus $(BOOTDIR)/pagurus
	install -D -m 755 $(BLK) $(LIBDIR)/pagurus-blk
	install -D -m 755 guest-linux/unpack-kernel $(LIBDIR)/unpack-kernel
	install -D -m 755 tools/grub/20_linux_pagurus $(GRUBDIR)/20_linux_pagurus
	[ -e $(GRUBCONFIG) ] || install -D -m 644 tools/grub/pagurus.cfg $(GRUBCONFIG)
