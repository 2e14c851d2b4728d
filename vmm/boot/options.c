// SPDX-License-Identifier: MIT
/* The command line: Xen's names where the meaning is the same. Whatever is not understood is named in the log and has no effect. */
#include "vmm/boot/boot.h"

#include "vmm/lib/number.h"
#include "vmm/lib/print.h"
#include "vmm/lib/string.h"

struct boot_options boot_options;

/* ---- words: NAME, NAME=VALUE or no-NAME; a value may be a list with commas ---- */

#define WORD_MAX 256

/*
 * The next piece of *list up to the separator, without it; moves *list on. False: there is none. One that is too long ends in "~", which makes
 * it one that is not understood.
 */
static bool next_piece(const char **list, char separator, char *out, size_t size)
{
	size_t n = 0;

	while (**list == separator)
		(*list)++;
	if (!**list)
		return false;
	for (; **list && **list != separator; (*list)++) {
		if (n + 1 < size)
			out[n++] = **list;
		else
			out[n - 1] = '~';
	}
	out[n] = 0;
	return true;
}

/* What follows the prefix, or NULL. */
static const char *after(const char *s, const char *prefix)
{
	size_t n = strlen(prefix);

	return strncmp(s, prefix, n) ? NULL : s + n;
}

static bool any_of(const char *s, const char *const *words)
{
	while (*words)
		if (!strcmp(s, *words++))
			return true;
	return false;
}

/* Bytes; without a suffix KiB, as Xen has it. */
static bool parse_size(const char *s, uint64_t *out)
{
	unsigned shift = 10;
	uint64_t value;

	if (!parse_number(s, &s, &value))
		return false;
	if (*s) {
		switch (*s++ | 0x20) {
		case 'b':
			shift = 0;
			break;
		case 'k':
			break;
		case 'm':
			shift = 20;
			break;
		case 'g':
			shift = 30;
			break;
		case 't':
			shift = 40;
			break;
		default:
			return false;
		}
	}
	if (*s || value > UINT64_MAX >> shift)
		return false;
	*out = value << shift;
	return true;
}

#define COUNT_MAX 0xffffu

static bool parse_count(const char *s, unsigned *out)
{
	uint64_t value;

	if (!parse_number(s, &s, &value) || *s || !value || value > COUNT_MAX)
		return false;
	*out = (unsigned)value;
	return true;
}

/* ---- one function for each option that is more than a flag; false: the value is not understood ---- */

/* An option without a value is switched on. */
static bool set_bool(int *out, const char *value)
{
	static const char *const yes[] = {"", "yes", "on", "true", "enable", "1", NULL};
	static const char *const no[] = {"no", "off", "false", "disable", "0", NULL};
	bool on = any_of(value, yes);

	if (!on && !any_of(value, no))
		return false;
	*out = on;
	return true;
}

static bool set_console(const char *value)
{
	static const char *const known[] = {"com1", "com2", "vga", "none", NULL};
	char piece[16];
	bool chosen = false, good = true;

	/* There is one console: the first serial one that is named, whatever stands beside it. */
	while (next_piece(&value, ',', piece, sizeof(piece))) {
		if (!any_of(piece, known)) {
			good = false;
		} else if (!chosen) {
			chosen = after(piece, "com");
			memcpy(boot_options.console, piece, sizeof(piece));
		}
	}
	return good;
}

/* SPEED or auto, then data bits with parity and stop bits, port and interrupt: not Xen's words for cards and for other crystals. */
static bool set_com(unsigned n, const char *value)
{
	const char *rest = after(value, "auto");
	uint64_t speed;

	if ((!rest && !parse_number(value, &rest, &speed)) || (*rest && *rest != ',') ||
	    strlen(value) >= sizeof(boot_options.com[n]))
		return false;
	for (; *rest; rest++)
		if (!strchr("0123456789abcdefxnoms,", *rest))
			return false;
	memcpy(boot_options.com[n], value, strlen(value) + 1);
	return true;
}

static bool set_dom0_mem(const char *list)
{
	char piece[64];
	bool good = *list;

	while (next_piece(&list, ',', piece, sizeof(piece))) {
		uint64_t *which = &boot_options.dom0_mem;
		const char *value = piece, *rest;

		rest = after(piece, "min:");
		if (rest) {
			which = &boot_options.dom0_mem_min;
			value = rest;
		}
		rest = after(piece, "max:");
		if (rest) {
			which = &boot_options.dom0_mem_max;
			value = rest;
		}
		if (!parse_size(value, which))
			good = false;
	}
	return good;
}

/* N, or MIN-MAX, of which either may be left out. */
static bool set_dom0_max_vcpus(const char *value)
{
	unsigned least, most = COUNT_MAX;
	const char *rest;
	uint64_t n;

	if (!parse_number(value, &rest, &n)) {
		rest = value;
		n = 0;
	}
	least = (unsigned)MIN(n, UINT32_MAX);
	if (*rest != '-')
		most = least;
	else if (rest[1] && !parse_count(rest + 1, &most))
		return false;
	if ((*rest && *rest != '-') || !most || most > COUNT_MAX || least > most)
		return false;
	boot_options.dom0_vcpus_min = least;
	boot_options.dom0_vcpus_max = most;
	return true;
}

/* LEVEL, or LOWER/UPPER, of which the second is only printed when there is time: here, never. */
static bool parse_level(const char *value, enum log_level *out)
{
	static const struct {
		const char *name;
		enum log_level level;
	} names[] = {
		{"none", LOG_ERROR}, {"error", LOG_ERROR}, {"warning", LOG_WARNING},
		{"info", LOG_INFO},  {"debug", LOG_DEBUG}, {"all", LOG_DEBUG},
	};
	char piece[16];

	if (!next_piece(&value, '/', piece, sizeof(piece)))
		return false;
	for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
		if (!strcmp(piece, names[i].name)) {
			*out = names[i].level;
			return true;
		}
	}
	return false;
}

/* One word of spec-ctrl's list. */
static bool set_mitigation(const char *word)
{
	const struct {
		const char *name;
		int *option;
	} known[] = {
		{"ibrs", &boot_options.ibrs},	{"ibpb", &boot_options.ibpb},
		{"stibp", &boot_options.stibp}, {"ssbd", &boot_options.ssbd},
		{"rsb", &boot_options.rsb},	{"verw", &boot_options.verw},
	};
	const char *positive = after(word, "no-");

	if (set_bool(&boot_options.spec_ctrl, word) || !strcmp(word, "eager-fpu"))
		return true; /* extended state is never switched lazily */
	for (unsigned i = 0; i < ARRAY_SIZE(known); i++) {
		const char *rest = after(positive ? positive : word, known[i].name);

		if (rest && !*rest)
			return set_bool(known[i].option, positive ? "no" : "yes");
		if (rest && *rest == '=' && !positive)
			return set_bool(known[i].option, rest + 1);
	}
	return false;
}

/* Words of Xen's finer control that mean nothing here are refused by name. */
static bool set_spec_ctrl(const char *list)
{
	char piece[64];

	while (next_piece(&list, ',', piece, sizeof(piece)))
		if (!set_mitigation(piece))
			log_warning("option spec-ctrl: \"%s\" is not known and ignored", piece);
	return true;
}

static bool set_tsc(const char *value)
{
	boot_options.tsc_unstable = !strcmp(value, "unstable");
	return boot_options.tsc_unstable;
}

/* Those that are on, off, or another word that means one of the two or, when it is NULL, neither. */
static const struct {
	const char *name, *other, *meaning;
	int *option;
} switches[] = {
	{"noreboot", NULL, NULL, &boot_options.noreboot},
	{"sync_console", NULL, NULL, &boot_options.sync_console},
	{"fault-injection", NULL, NULL, &boot_options.fault_injection},
	/* Not for PV guests, and there are no others. */
	{"smep", "hvm", "no", &boot_options.smep},
	{"smap", "hvm", "no", &boot_options.smap},
	{"pcid", NULL, NULL, &boot_options.pcid},
	{"pv-l1tf", NULL, NULL, &boot_options.pv_l1tf},
	{"xpti", "default", NULL, &boot_options.xpti},
};

enum verdict { GOOD, BAD_VALUE, UNKNOWN };

static enum verdict judge(bool good)
{
	return good ? GOOD : BAD_VALUE;
}

static enum verdict parse_option(const char *name, const char *value)
{
	enum log_level guests;

	for (unsigned i = 0; i < ARRAY_SIZE(switches); i++) {
		if (strcmp(name, switches[i].name))
			continue;
		if (switches[i].other && !strcmp(value, switches[i].other))
			value = switches[i].meaning;
		return judge(!value || set_bool(switches[i].option, value));
	}
	if (!strcmp(name, "console"))
		return judge(set_console(value));
	if (!strcmp(name, "com1"))
		return judge(set_com(0, value));
	if (!strcmp(name, "com2"))
		return judge(set_com(1, value));
	if (!strcmp(name, "dom0_mem"))
		return judge(set_dom0_mem(value));
	if (!strcmp(name, "dom0_max_vcpus"))
		return judge(set_dom0_max_vcpus(value));
	if (!strcmp(name, "maxcpus"))
		return judge(parse_count(value, &boot_options.maxcpus));
	if (!strcmp(name, "loglvl"))
		return judge(parse_level(value, &log_console_level));
	if (!strcmp(name, "guest_loglvl")) /* guests have no level of their own */
		return judge(parse_level(value, &guests));
	if (!strcmp(name, "spec-ctrl"))
		return judge(set_spec_ctrl(value));
	if (!strcmp(name, "tsc"))
		return judge(set_tsc(value));
	/* Debian's GRUB scripts add these for UEFI. They switch off what does not exist here. */
	if (!strcmp(name, "no-real-mode") || !strcmp(name, "edd"))
		return GOOD;
	return UNKNOWN;
}

static void parse_word(const char *word)
{
	char name[WORD_MAX];
	const char *value = strchr(word, '='), *positive = after(word, "no-");
	size_t n = value ? (size_t)(value - word) : strlen(word);
	enum verdict verdict;

	memcpy(name, word, n);
	name[n] = 0;
	verdict = parse_option(name, value ? value + 1 : "");
	if (verdict == UNKNOWN && positive && !value)
		verdict = parse_option(positive, "no");
	if (verdict == UNKNOWN)
		log_warning("option \"%s\" is not known and ignored", word);
	else if (verdict == BAD_VALUE)
		log_warning("option \"%s\" has a value that is not understood and ignored", word);
}

void options_parse(const char *command_line)
{
	char word[WORD_MAX];

	memset(&boot_options, 0, sizeof(boot_options));
	memcpy(boot_options.console, "com1", 5);
	boot_options.dom0_vcpus_max = COUNT_MAX;
	boot_options.smep = boot_options.smap = -1;
	boot_options.pcid = boot_options.xpti = boot_options.pv_l1tf = boot_options.spec_ctrl = -1;
	boot_options.ibrs = boot_options.ibpb = boot_options.rsb = boot_options.verw = -1;
	while (next_piece(&command_line, ' ', word, sizeof(word)))
		parse_word(word);
}
