# SPDX-License-Identifier: MIT
# Installation: the command, its unit, man pages and completion. DESTDIR stages it, PREFIX moves it.

BINDIR := $(DESTDIR)$(PREFIX)/bin
UNITDIR := $(DESTDIR)$(PREFIX)/lib/systemd/system
MANDIR := $(DESTDIR)$(PREFIX)/share/man
COMPLETIONDIR := $(DESTDIR)$(PREFIX)/share/bash-completion/completions

.PHONY: install

install: $(TOOL)
	install -D -m 755 $(TOOL) $(BINDIR)/pagurus
	install -d $(UNITDIR)
	sed 's,/usr/bin/,$(PREFIX)/bin/,' tools/pagurus.service > $(UNITDIR)/pagurus.service
	chmod 644 $(UNITDIR)/pagurus.service
	install -D -m 644 -t $(MANDIR)/man1 docs/man/*.1
	install -D -m 644 -t $(MANDIR)/man8 docs/man/*.8
	install -D -m 644 tools/completion/pagurus $(COMPLETIONDIR)/pagurus
