// SPDX-License-Identifier: MIT
/* Names of volumes of LVM (lvm_name.h), and the programs that are run for them (command.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "storage/command.h"
#include "storage/lvm_name.h"
#include "tests/unit/unit.h"

static struct pgr_error err;

static void names(void)
{
	static const char *const good[] = {"a", "web.monday", "_x", "a-b", "A+b_c.9", "..."};
	static const char *const bad[] = {"",	 ".",  "..",	    "-a",  "a b", "a/b", "a\n",
					  "a;b", "$a", "a\xc3\xa4", "a@b", "a=b", "*"};
	char longest[LVM_NAME + 1];

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		CHECK_MSG(lvm_name_is_valid(good[i]), "%s", good[i]);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_MSG(!lvm_name_is_valid(bad[i]), "%s", bad[i]);
	memset(longest, 'x', sizeof(longest));
	longest[LVM_NAME - 1] = 0;
	CHECK(lvm_name_is_valid(longest));
	longest[LVM_NAME - 1] = 'x';
	longest[LVM_NAME] = 0;
	CHECK(!lvm_name_is_valid(longest));
}

static void names_of_maps(void)
{
	static const struct {
		const char *map, *vg, *lv;
	} good[] = {{"vg-web", "vg", "web"},
		    {"my--vg-web--1.x", "my-vg", "web-1.x"},
		    {"a----b-c", "a--b", "c"}},
	  bad[] = {{.map = ""},	       {.map = "vg"},	       {.map = "vg-"},
		   {.map = "-web"},    {.map = "vg-web-real"}, {.map = "vg--web"},
		   {.map = "vg-web-"}, {.map = "v g-web"}};
	char longest[3 * LVM_NAME];
	struct lvm_name n;

	for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++)
		CHECK_MSG(lvm_name_of_map(good[i].map, &n) && !strcmp(n.vg, good[i].vg) &&
				  !strcmp(n.lv, good[i].lv),
			  "%s", good[i].map);
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		CHECK_MSG(!lvm_name_of_map(bad[i].map, &n), "%s", bad[i].map);
	memset(longest, 'x', sizeof(longest));
	longest[sizeof(longest) - 1] = 0;
	CHECK(!lvm_name_of_map(longest, &n));
	longest[2] = '-';
	CHECK(!lvm_name_of_map(longest, &n));
}

/* What is no device, and no name for one. */
static void what_is_a_volume(void)
{
	char folder[] = "/tmp/pagurus-lvm.XXXXXX", device[LVM_DEVICE];
	struct lvm_name n;
	int fd;

	CHECK(mkdtemp(folder) && !chdir(folder));
	CHECK(lvm_find("vg/web", &n) && !strcmp(n.vg, "vg") && !strcmp(n.lv, "web"));
	CHECK(lvm_find("/dev/vg/web", &n) && !strcmp(n.vg, "vg") && !strcmp(n.lv, "web"));
	CHECK(!lvm_find("/dev/mapper/vg-web", &n) && !lvm_find("/dev/vg/a/b", &n) &&
	      !lvm_find("/dev/vg/-x", &n));
	CHECK(!lvm_find("/vg/web", &n) && !lvm_find("web", &n) && !lvm_find("./web", &n) &&
	      !lvm_find("a/b/c", &n) && !lvm_find("vg/", &n));
	CHECK(!lvm_find("/dev/null", &n) && !lvm_find("/dev", &n));
	CHECK_EQ(mkdir("vg", 0700), 0);
	CHECK(!lvm_find("vg/web", &n));
	fd = open("vg/web", O_CREAT | O_WRONLY, 0600);
	CHECK(fd >= 0 && !lvm_find("vg/web", &n));
	close(fd);
	CHECK(!strcmp(lvm_device("vg/web", device), "vg/web"));
	CHECK(!strcmp(lvm_device("none/web", device), "none/web"));
	CHECK(!unlink("vg/web") && !rmdir("vg") && !chdir("/") && !rmdir(folder));
}

static int shell(const char *script, char **out)
{
	const char *const argv[] = {"/bin/sh", "-c", script, NULL};

	err = PGR_ERROR_NONE;
	return command_run(argv, out, &err);
}

static void must_say(const char *script, const char *words)
{
	char *out = NULL;
	int ret = shell(script, &out);

	CHECK_MSG(!ret, "%s", err.text);
	CHECK_MSG(!strcmp(out, words), "%s: %s", script, out);
	free(out);
}

static void programs(void)
{
	const char *const none[] = {"/not/there", NULL};
	char *out = NULL;
	int kept = open("/dev/null", O_RDONLY); /* no O_CLOEXEC */

	CHECK(kept > 2);
	must_say("echo one; echo two >&2; echo three", "one\nthree\n");
	must_say("true", "");
	must_say("cat", "");
	setenv("LC_ALL", "de_DE.UTF-8", 1);
	must_say("echo $LC_ALL $PATH_OF_TEST", "C\n");
	setenv("PATH_OF_TEST", "here", 1);
	must_say("echo $LC_ALL $PATH_OF_TEST", "C here\n");
	/* Nothing of ours is open in it. */
	must_say(
		"for fd in /proc/self/fd/*; do n=${fd##*/}; [ $n -lt 3 ] || [ ! -e $fd ] || echo $n; done",
		"");
	/* What it has started does not hold us up. */
	must_say("sleep 1000 & echo $! > /tmp/pagurus-lvm-sleep; echo done", "done\n");
	must_say("kill $(cat /tmp/pagurus-lvm-sleep); rm /tmp/pagurus-lvm-sleep", "");
	CHECK_EQ(command_run(none, NULL, &err), -ENOENT);
	CHECK_EQ(shell("echo first >&2; printf '  why it\\033 failed\\n\\n' >&2; exit 5", &out),
		 -EIO);
	CHECK_HAS(err.text, "/bin/sh -c: why it? failed");
	CHECK_EQ(shell("exit 1", NULL), -EIO);
	CHECK_HAS(err.text, "does not say why");
	CHECK_EQ(shell("kill -9 $$", NULL), -EIO);
	CHECK_HAS(err.text, "signal 9");
	close(kept);
}

/* Much at once on both, and too much. */
static void much_to_say(void)
{
	char *out = NULL;

	CHECK_EQ(shell("head -c 5000000 /dev/zero | tr '\\0' a; head -c 1000000 /dev/zero >&2",
		       &out),
		 0);
	CHECK_EQ(strlen(out), 5000000);
	free(out);
	CHECK_EQ(shell("head -c 20000000 /dev/zero", &out), -EFBIG);
	CHECK_HAS(err.text, "output");
}

UNIT_MAIN(TEST(names), TEST(names_of_maps), TEST(what_is_a_volume), TEST(programs),
	  TEST(much_to_say))
