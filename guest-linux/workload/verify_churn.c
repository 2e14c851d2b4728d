// SPDX-License-Identifier: MIT
#include "verify_churn.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "verify_pages.h"

typedef uint64_t page_words[VERIFY_PAGE_WORDS];

enum {
	GENERATION_FIRST = 1,
	GENERATION_PARENT,
	GENERATION_CHILD,
};

static page_words *map(uint64_t count, int flags)
{
	void *memory = mmap(NULL, count * VERIFY_PAGE_SIZE, PROT_READ | PROT_WRITE,
			    flags | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

static void write_all(page_words *pages, uint64_t count, uint64_t seed, uint64_t generation)
{
	uint64_t i;

	for (i = 0; i < count; i++)
		page_write(pages[i], seed, CHURN_FIRST_PAGE + i, generation);
}

static void note(struct finding *finding, const uint64_t *word, uint64_t page, uint64_t expected)
{
	finding->kind = FINDING_CHURN;
	finding->address = (uintptr_t)word;
	finding->page = page;
	finding->expected = expected;
	finding->found = *word;
}

/* Checks pages @from to @to - 1; true when they are as written. */
static bool check(page_words *pages, uint64_t from, uint64_t to, uint64_t seed, uint64_t generation,
		  struct finding *finding)
{
	uint64_t i, number;
	size_t word;

	for (i = from; i < to; i++) {
		number = CHURN_FIRST_PAGE + i;
		word = page_compare(pages[i], seed, number, generation);
		if (word == VERIFY_PAGE_WORDS)
			continue;
		note(finding, &pages[i][word], number, page_word(seed, number, generation, word));
		return false;
	}
	return true;
}

static bool check_zero(page_words *pages, uint64_t count, struct finding *finding)
{
	uint64_t i;
	size_t word;

	for (i = 0; i < count; i++) {
		for (word = 0; word < VERIFY_PAGE_WORDS; word++) {
			if (pages[i][word] == 0)
				continue;
			note(finding, &pages[i][word], CHURN_FIRST_PAGE + i, 0);
			return false;
		}
	}
	return true;
}

/* Runs in the child of a process with several threads: no allocation, no printing. */
static _Noreturn void child(page_words *pages, uint64_t count, uint64_t seed,
			    struct finding *finding)
{
	if (!check(pages, 0, count, seed, GENERATION_FIRST, finding))
		_exit(1);
	write_all(pages, count, seed, GENERATION_CHILD);
	_exit(!check(pages, 0, count, seed, GENERATION_CHILD, finding));
}

/* The child sees the first generation however soon the parent writes the next. */
static int fork_turn(page_words *pages, uint64_t count, uint64_t seed, struct finding *finding)
{
	struct finding *told;
	int status, rc = 0;
	pid_t pid;

	told = (struct finding *)map(1, MAP_SHARED);
	if (!told)
		return -errno;
	pid = fork();
	if (pid < 0) {
		rc = -errno;
		goto unmap;
	}
	if (pid == 0)
		child(pages, count, seed, told);
	write_all(pages, count, seed, GENERATION_PARENT);
	while (waitpid(pid, &status, 0) < 0) {
		if (errno == EINTR)
			continue;
		rc = -errno;
		goto unmap;
	}
	if (told->kind != FINDING_NONE)
		*finding = *told;
	else if (status != 0)
		rc = -EPROTO;
	else
		check(pages, 0, count, seed, GENERATION_PARENT, finding);
unmap:
	munmap(told, VERIFY_PAGE_SIZE);
	return rc;
}

/* Makes the pages read-only and back, moves them elsewhere by growing them. */
static int move_turn(page_words **pages, uint64_t *count, uint64_t seed, struct finding *finding)
{
	uint64_t written = *count;
	void *moved;

	if (mprotect(*pages, written * VERIFY_PAGE_SIZE, PROT_READ))
		return -errno;
	if (!check(*pages, 0, written, seed, GENERATION_FIRST, finding))
		return 0;
	if (mprotect(*pages, written * VERIFY_PAGE_SIZE, PROT_READ | PROT_WRITE))
		return -errno;
	moved = mremap(*pages, written * VERIFY_PAGE_SIZE, 2 * written * VERIFY_PAGE_SIZE,
		       MREMAP_MAYMOVE);
	if (moved == MAP_FAILED)
		return -errno;
	*pages = moved;
	*count = 2 * written;
	if (check(*pages, 0, written, seed, GENERATION_FIRST, finding) &&
	    check_zero(*pages + written, written, finding))
		write_all(*pages, *count, seed, GENERATION_FIRST);
	return 0;
}

/*
 * Replaces the middle by fresh pages. In one step: between an munmap and an mmap another thread's
 * mapping could take the place.
 */
static int hole_turn(page_words *pages, uint64_t count, uint64_t seed, struct finding *finding)
{
	uint64_t from = count / 4, to = count / 2;

	if (mmap(pages + from, (to - from) * VERIFY_PAGE_SIZE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		return -errno;
	if (check_zero(pages + from, to - from, finding) &&
	    check(pages, 0, from, seed, GENERATION_PARENT, finding))
		check(pages, to, count, seed, GENERATION_PARENT, finding);
	return 0;
}

int churn_turn(uint64_t seed, uint64_t count, struct finding *finding)
{
	page_words *pages;
	int rc = 0;

	finding->kind = FINDING_NONE;
	pages = map(count, MAP_PRIVATE);
	if (!pages)
		return -errno;
	if (!check_zero(pages, count, finding))
		goto unmap;
	write_all(pages, count, seed, GENERATION_FIRST);
	rc = move_turn(&pages, &count, seed, finding);
	if (rc || finding->kind != FINDING_NONE)
		goto unmap;
	rc = fork_turn(pages, count, seed, finding);
	if (rc || finding->kind != FINDING_NONE)
		goto unmap;
	rc = hole_turn(pages, count, seed, finding);
unmap:
	munmap(pages, count * VERIFY_PAGE_SIZE);
	return rc;
}
