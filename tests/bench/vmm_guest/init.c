// SPDX-License-Identifier: MIT
/*
 * The only program of the machine that is measured, or of a guest in it (static, process 1): runs each row that bench.rows= on the kernel's command line
 * names, some batches of it, and says for each batch how many instructions it took by the TSC, which under `-icount shift=0` counts them. Then it says
 * `bench: done` and ends the machine.
 *
 *   bench: init TSC
 *   bench: row NAME OPERATIONS TSC NANOSECONDS        for each batch
 *   bench: skip NAME WHY
 *
 * Around each batch stand marks for the plugin (counts.c). With words it does one thing of these:
 *
 *   exit               nothing
 *   begin              the mark at which a window begins; another program ends it
 *   stay               process 1 of a guest that has nothing to do
 *   row NAME BATCHES   that row
 *   serve              the other end of the rows of the network
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "marks.h"

#define PAGE	    4096ul
#define MIB	    (1ul << 20)
#define MAX_BATCHES 64
#define LINE	    2048

struct row {
	const char *name;
	unsigned operations; /* of one batch */
	unsigned batches;    /* 0: as the others */
	void (*run)(unsigned n);
	bool (*prepare)(void); /* false: it cannot run here, and has said why */
	void (*between)(void); /* before each batch */
};

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	char text[LINE];
	va_list list;
	int n;

	va_start(list, format);
	n = vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	if (write(1, text, (size_t)n) != n)
		_exit(1);
}

static void __attribute__((noreturn)) stop(void)
{
	sleep(1); /* in which what was said is taken from a guest's console */
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void must(bool fine, const char *what)
{
	if (fine)
		return;
	say("bench: failed: %s: %s\n", what, strerror(errno));
	stop();
}

static uint64_t tsc(void)
{
	return __builtin_ia32_rdtsc();
}

static uint64_t nanoseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- system calls ---- */

static void getppids(unsigned n)
{
	while (n--)
		syscall(SYS_getppid);
}

static int zero_fd = -1;

static bool open_zero(void)
{
	zero_fd = open("/dev/zero", O_RDONLY);
	must(zero_fd >= 0, "/dev/zero");
	return true;
}

static void read_zero(unsigned n)
{
	char byte;

	while (n--)
		must(read(zero_fd, &byte, 1) == 1, "read /dev/zero");
}

static volatile unsigned caught;

static void on_signal(int number)
{
	(void)number;
	caught++;
}

static bool catch_signal(void)
{
	signal(SIGUSR1, on_signal);
	return true;
}

static void signals(unsigned n)
{
	pid_t self = getpid();

	while (n--)
		kill(self, SIGUSR1);
}

static int to_self[2], there[2], back[2];

static bool open_pipe(void)
{
	must(!pipe(to_self), "pipe");
	return true;
}

static void pipe_self(unsigned n)
{
	char byte = 0;

	while (n--)
		must(write(to_self[1], &byte, 1) == 1 && read(to_self[0], &byte, 1) == 1, "pipe");
}

static bool start_echo(void)
{
	char byte;

	must(!pipe(there) && !pipe(back), "pipe");
	if (fork())
		return true;
	close(there[1]);
	while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
		;
	_exit(0);
}

static void pipe_other(unsigned n)
{
	char byte = 0;

	while (n--)
		must(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "echo");
}

/* ---- memory ---- */

static char *map(size_t bytes)
{
	char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(p != MAP_FAILED, "mmap");
	return p;
}

static void touch(char *p, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		*(volatile char *)(p + at) = 1;
}

#define FAULT_PAGES 512
static char *fresh;

static bool map_fresh(void)
{
	fresh = map(FAULT_PAGES * PAGE);
	return true;
}

/* The page tables stay: it is the fault that is measured. */
static void forget_fresh(void)
{
	touch(fresh, FAULT_PAGES * PAGE);
	must(!madvise(fresh, FAULT_PAGES * PAGE, MADV_DONTNEED), "madvise");
}

static void fault(unsigned n)
{
	touch(fresh, n * PAGE);
}

static void map_touch_unmap(unsigned n)
{
	while (n--) {
		char *p = map(MIB);

		touch(p, MIB);
		munmap(p, MIB);
	}
}

#define PROTECTED (256 * PAGE)
static char *protected;

static bool map_protected(void)
{
	protected = map(PROTECTED);
	touch(protected, PROTECTED);
	return true;
}

static void protect(unsigned n)
{
	while (n--)
		must(!mprotect(protected, PROTECTED, PROT_READ) &&
			     !mprotect(protected, PROTECTED, PROT_READ | PROT_WRITE),
		     "mprotect");
}

/* ---- processes ---- */

static void run_program(const char *const *words)
{
	int status;
	pid_t child = fork();

	must(child >= 0, "fork");
	if (!child) {
		if (words)
			execv(words[0], (char *const *)words);
		_exit(words ? 127 : 0);
	}
	must(waitpid(child, &status, 0) == child && status == 0, words ? words[0] : "fork");
}

static void fork_exit(unsigned n)
{
	while (n--)
		run_program(NULL);
}

static void fork_exec(unsigned n)
{
	static const char *const words[] = {"/init", "exit", NULL};

	while (n--)
		run_program(words);
}

static bool have_compiler(void)
{
	must(!access("/usr/bin/gcc", X_OK), "/usr/bin/gcc");
	return true;
}

static void compile(unsigned n)
{
	static const char *const words[] = {"/usr/bin/gcc", "-O2",	     "-c", "/work/large.i",
					    "-o",	    "/work/large.o", NULL};

	while (n--)
		run_program(words);
}

static void compile_tiny(unsigned n)
{
	static const char *const words[] = {"/usr/bin/gcc", "-O2",	    "-c", "/work/tiny.i",
					    "-o",	    "/work/tiny.o", NULL};

	while (n--)
		run_program(words);
}

static void shell_loop(unsigned n)
{
	char script[64];
	const char *const words[] = {"/bin/busybox", "sh", "-c", script, NULL};

	snprintf(script, sizeof(script), "i=0; while [ $i -lt %u ]; do /bin/true; i=$((i+1)); done",
		 n);
	run_program(words);
}

/* ---- others ---- */

struct privcmd_hypercall { /* of Linux' ABI, include/uapi/xen/privcmd.h */
	uint64_t number, arguments[5];
};
#define PRIVCMD_HYPERCALL   _IOC(_IOC_NONE, 'P', 0, sizeof(struct privcmd_hypercall))
#define XEN_VERSION	    17
#define XEN_VERSION_VERSION 0

static int privcmd = -1;

static void load_module(const char *path)
{
	int fd = open(path, O_RDONLY);

	must(fd >= 0 && (!syscall(SYS_finit_module, fd, "", 0) || errno == EEXIST), path);
	close(fd);
}

static bool open_privcmd(void)
{
	if (access("/sys/hypervisor/type", R_OK)) {
		say("bench: skip hypercall there is no hypervisor\n");
		return false;
	}
	load_module("/xen-privcmd.ko");
	privcmd = open("/dev/xen/privcmd", O_RDWR);
	must(privcmd >= 0, "/dev/xen/privcmd");
	return true;
}

static void hypercalls(unsigned n)
{
	struct privcmd_hypercall call = {XEN_VERSION, {XEN_VERSION_VERSION}};

	while (n--)
		must(ioctl(privcmd, PRIVCMD_HYPERCALL, &call) > 0, "hypercall");
}

/* Integers and memory, and nothing of the kernel. */
static char *from, *to;

static bool map_copied(void)
{
	from = map(MIB);
	to = map(MIB);
	touch(from, MIB);
	touch(to, MIB);
	return true;
}

static volatile uint64_t sink;

static void compute(unsigned n)
{
	uint64_t x = 88172645463325252u;

	while (n--) {
		for (unsigned i = 0; i < 1000000; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
		}
		memcpy(to, from, MIB);
		sink = x + (unsigned char)to[x % MIB];
	}
}

/* Operations are seconds. */
static void idle(unsigned n)
{
	sleep(n);
}

/* ---- a guest's devices; operations are bytes ---- */

#define DISK	    "/dev/xvda"
#define CHUNK	    MIB
#define DEVICE_SIZE (8 * MIB)
#define PORT	    7
#define TRIES	    600
#define TRY_US	    100000

static int disk = -1, peer = -1;

static bool open_disk(void)
{
	load_module("/xen-blkfront.ko");
	for (unsigned tries = 0; disk < 0 && tries < TRIES; tries++, usleep(TRY_US))
		disk = open(DISK, O_RDWR | O_DIRECT);
	must(disk >= 0, DISK);
	return map_copied();
}

static void disk_read(unsigned n)
{
	for (unsigned at = 0; at < n; at += CHUNK)
		must(pread(disk, to, CHUNK, at) == CHUNK, "read " DISK);
}

static void disk_write(unsigned n)
{
	for (unsigned at = 0; at < n; at += CHUNK)
		must(pwrite(disk, from, CHUNK, at) == CHUNK, "write " DISK);
}

/* ---- a disk, by requests ---- */

#define REQUESTS_AREA (32 * MIB)
#define DEPTH_MAX     32
#define LARGE	      (64ul << 10)

static aio_context_t aio;
static uint64_t area_random = 88172645463325252u;

/* What is read and overwritten is there, and an image has room for it. */
static bool open_requests(void)
{
	open_disk();
	for (unsigned long at = 0; at < REQUESTS_AREA; at += CHUNK)
		must(pwrite(disk, from, CHUNK, (off_t)at) == CHUNK, "write " DISK);
	must(!fsync(disk), "flush " DISK);
	must(!syscall(SYS_io_setup, DEPTH_MAX, &aio), "io_setup");
	return true;
}

/* The place of the n-th: anywhere for small ones, the same in each boot; one behind the other for large ones. */
static int64_t place(unsigned n, unsigned long bytes)
{
	unsigned long places = REQUESTS_AREA / bytes;

	if (bytes == LARGE)
		return (int64_t)(n % places * bytes);
	area_random ^= area_random << 13;
	area_random ^= area_random >> 7;
	area_random ^= area_random << 17;
	return (int64_t)(area_random % places * bytes);
}

/* As many at a time as depth, whose number stays the same until no more begin. */
static void requests(unsigned n, unsigned depth, unsigned long bytes, bool write)
{
	static struct iocb request[DEPTH_MAX];
	struct iocb *ready[DEPTH_MAX];
	struct io_event done[DEPTH_MAX];
	unsigned begun = 0, ended = 0, nr_ready = 0;

	for (; nr_ready < depth; nr_ready++)
		ready[nr_ready] = &request[nr_ready];
	while (ended < n) {
		unsigned nr = 0;
		long got;

		for (; nr < nr_ready && begun < n; nr++, begun++) {
			struct iocb *r = ready[nr];

			*r = (struct iocb){
				.aio_fildes = (uint32_t)disk,
				.aio_lio_opcode = write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
				.aio_buf = (uintptr_t)(from + (r - request) * bytes % MIB),
				.aio_nbytes = bytes,
				.aio_offset = place(begun, bytes)};
		}
		must(syscall(SYS_io_submit, aio, nr, ready) == (long)nr, "io_submit");
		got = syscall(SYS_io_getevents, aio, 1, DEPTH_MAX, done, NULL);
		must(got > 0, "io_getevents");
		for (nr_ready = 0; nr_ready < got; nr_ready++) {
			must(done[nr_ready].res == (int64_t)bytes, "a request to " DISK);
			ready[nr_ready] = (struct iocb *)(uintptr_t)done[nr_ready].obj;
		}
		ended += nr_ready;
	}
}

static void read_4k(unsigned n)
{
	requests(n, 1, PAGE, false);
}

static void write_4k(unsigned n)
{
	requests(n, 1, PAGE, true);
}

static void read_4k_32(unsigned n)
{
	requests(n, DEPTH_MAX, PAGE, false);
}

static void write_4k_32(unsigned n)
{
	requests(n, DEPTH_MAX, PAGE, true);
}

static void read_64k(unsigned n)
{
	requests(n, 1, LARGE, false);
}

static void write_64k(unsigned n)
{
	requests(n, 1, LARGE, true);
}

/* ---- the network ---- */

struct request {
	uint32_t bytes, send;
};

static void transfer(int fd, bool send, uint64_t bytes)
{
	static char buffer[64 * 1024];

	while (bytes) {
		size_t most = bytes < sizeof(buffer) ? bytes : sizeof(buffer);
		ssize_t n = send ? write(fd, buffer, most) : read(fd, buffer, most);

		must(n > 0, "network");
		bytes -= (uint64_t)n;
	}
}

static struct sockaddr_in address(void)
{
	return (struct sockaddr_in){.sin_family = AF_INET,
				    .sin_port = htons(PORT),
				    .sin_addr.s_addr = inet_addr("10.0.0.1")};
}

static bool open_network(void)
{
	static const char *const words[] = {"/bin/busybox", "ifconfig", "eth0", "10.0.0.2", NULL};
	struct sockaddr_in a = address();

	load_module("/xen-netfront.ko");
	for (unsigned tries = 0; access("/sys/class/net/eth0", R_OK) && tries < TRIES; tries++)
		usleep(TRY_US);
	run_program(words);
	peer = socket(AF_INET, SOCK_STREAM, 0);
	for (unsigned tries = 0; connect(peer, (struct sockaddr *)&a, sizeof(a)); tries++) {
		must(tries < TRIES, "connect");
		usleep(TRY_US);
	}
	return true;
}

static void network(unsigned n, bool send)
{
	struct request r = {n, !send};
	char byte;

	must(write(peer, &r, sizeof(r)) == sizeof(r), "request");
	transfer(peer, send, n);
	if (send)
		must(read(peer, &byte, 1) == 1, "answer");
}

static void network_out(unsigned n)
{
	network(n, true);
}

static void network_in(unsigned n)
{
	network(n, false);
}

static void __attribute__((noreturn)) serve(void)
{
	struct sockaddr_in a = address();
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	struct request r;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	must(!bind(listener, (struct sockaddr *)&a, sizeof(a)) && !listen(listener, 1), "listen");
	for (;;) {
		int fd = accept(listener, NULL, NULL);

		while (read(fd, &r, sizeof(r)) == sizeof(r)) {
			transfer(fd, r.send, r.bytes);
			if (!r.send)
				must(write(fd, "", 1) == 1, "answer");
		}
		close(fd);
	}
}

static const struct row rows[] = {
	{"getppid", 1000, 0, getppids, NULL, NULL},
	{"read", 1000, 0, read_zero, open_zero, NULL},
	{"fault", FAULT_PAGES, 0, fault, map_fresh, forget_fresh},
	{"mmap", 4, 0, map_touch_unmap, NULL, NULL},
	{"mprotect", 8, 0, protect, map_protected, NULL},
	{"fork", 8, 0, fork_exit, NULL, NULL},
	{"exec", 4, 0, fork_exec, NULL, NULL},
	{"switch", 100, 0, pipe_other, start_echo, NULL},
	{"signal", 400, 0, signals, catch_signal, NULL},
	{"pipe", 400, 0, pipe_self, open_pipe, NULL},
	{"hypercall", 400, 0, hypercalls, open_privcmd, NULL},
	{"cpu", 10, 3, compute, map_copied, NULL},
	{"shell", 20, 3, shell_loop, NULL, NULL},
	{"tiny-cc", 10, 1, compile_tiny, have_compiler, NULL},
	{"cc", 1, 1, compile, have_compiler, NULL},
	{"idle", 20, 0, idle, NULL, NULL},
	{"disk-write", DEVICE_SIZE, 0, disk_write, open_disk, NULL},
	{"disk-read", DEVICE_SIZE, 0, disk_read, open_disk, NULL},
	{"read-4k", 512, 0, read_4k, open_requests, NULL},
	{"write-4k", 512, 0, write_4k, open_requests, NULL},
	{"read-4k-32", 2048, 0, read_4k_32, open_requests, NULL},
	{"write-4k-32", 2048, 0, write_4k_32, open_requests, NULL},
	{"read-64k", 256, 0, read_64k, open_requests, NULL},
	{"write-64k", 256, 0, write_64k, open_requests, NULL},
	{"net-out", DEVICE_SIZE, 0, network_out, open_network, NULL},
	{"net-in", DEVICE_SIZE, 0, network_in, open_network, NULL},
};

struct sample {
	uint64_t tsc, nanoseconds;
};

static void measure(const struct row *r, unsigned batches)
{
	struct sample sample[MAX_BATCHES];

	if (r->prepare && !r->prepare())
		return;
	/* Once for nothing: the caches of the kernel's allocators are filled then. */
	if (batches > 1)
		r->run(r->operations);
	for (unsigned i = 0; i < batches; i++) {
		uint64_t began_tsc, began_ns;

		if (r->between)
			r->between();
		began_ns = nanoseconds();
		began_tsc = tsc();
		MARK_BEGIN();
		r->run(r->operations);
		MARK_END();
		sample[i].tsc = tsc() - began_tsc;
		sample[i].nanoseconds = nanoseconds() - began_ns;
	}
	for (unsigned i = 0; i < batches; i++)
		say("bench: row %s %u %llu %llu\n", r->name, r->operations,
		    (unsigned long long)sample[i].tsc, (unsigned long long)sample[i].nanoseconds);
}

/* In a process of its own, so that no row has to do with what another has mapped. */
static void measure_alone(const struct row *r, unsigned batches)
{
	int status;
	pid_t child = fork();

	must(child >= 0, "fork");
	if (!child) {
		measure(r, batches);
		_exit(0);
	}
	must(waitpid(child, &status, 0) == child && status == 0, r->name);
}

/* The kernel's command line has bench.rows=NAME,NAME... and bench.batches=N. */
static bool wanted(const char *line, const char *name)
{
	const char *at = strstr(line, "bench.rows=");
	size_t length = strlen(name);

	must(at, "bench.rows= on the command line");
	if (!at)
		return false;
	at += strlen("bench.rows=");
	for (;;) {
		size_t word = strcspn(at, ", \n");

		if (word == length && !strncmp(at, name, length))
			return true;
		if (at[word] != ',')
			return false;
		at += word + 1;
	}
}

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR);

	if (fd < 0)
		return;
	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
}

static void __attribute__((noreturn)) stay(void)
{
	mount("dev", "/dev", "devtmpfs", 0, "");
	open_console();
	say("bench: stays\n");
	for (;;)
		pause();
}

/* The kernel passes on what it does not know of its command line, too. */
static void with_words(int argc, char **argv)
{
	if (!strcmp(argv[1], "begin")) {
		MARK_BEGIN();
		_exit(0);
	}
	if (!strcmp(argv[1], "exit"))
		_exit(0);
	if (!strcmp(argv[1], "serve"))
		serve();
	for (unsigned i = 0; !strcmp(argv[1], "row") && i < sizeof(rows) / sizeof(*rows); i++)
		if (argc == 4 && !strcmp(argv[2], rows[i].name)) {
			measure(&rows[i], (unsigned)atoi(argv[3]));
			_exit(0);
		}
	for (int i = 1; i < argc; i++)
		if (!strcmp(argv[i], "stay"))
			stay();
}

int main(int argc, char **argv)
{
	uint64_t started;
	char line[LINE] = "";
	const char *at;
	unsigned batches;
	int fd;

	if (argc > 1)
		with_words(argc, argv);
	MARK_END(); /* all since power-on */
	started = tsc();
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	mount("dev", "/dev", "devtmpfs", 0, "");
	open_console();
	say("bench: init %llu\n", (unsigned long long)started);
	fd = open("/proc/cmdline", O_RDONLY);
	must(fd >= 0 && read(fd, line, sizeof(line) - 1) > 0, "/proc/cmdline");
	close(fd);
	at = strstr(line, "bench.batches=");
	batches = at ? (unsigned)atoi(at + strlen("bench.batches=")) : 0;
	must(batches > 0 && batches <= MAX_BATCHES, "bench.batches= on the command line");
	setenv("PATH", "/usr/bin:/bin", 1);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(*rows); i++)
		if (wanted(line, rows[i].name))
			measure_alone(&rows[i], rows[i].batches ? rows[i].batches : batches);
	say("bench: done\n");
	stop();
}
