/* SPDX-License-Identifier: MIT */
/*
 * Whole migrations of a simulated guest between two processes over loopback TCP, in clear and
 * through TLS, and what this processor does alone. Prints one JSON object a line, for
 * tests/bench/run, which repeats, takes medians and puts QEMU beside it.
 *
 *	bench_engine --limits CONTENT [--mib N]		memcpy, zero test, LZ4, zstd, AES-GCM
 *	bench_engine --fill CONTENT FILE [--mib N]	the guest's memory, for others to move
 *	bench_engine --move CONTENT [--mib N] [--working-set MIB] [--rate MIB] [--downtime MS]
 *		SETTING...
 *
 * CONTENT: zero, text, binaries, random, mixed. SETTING: TRANSPORT:METHOD:CHANNELS, as in
 * tls:lz4:2 or tcp:none:1.
 *
 * One guest is moved by each setting in turn: its source keeps it when it has moved. The target is
 * this program in another process, started anew each time. TCP without TLS exists in this program
 * only. CPU is that of the whole process while its end of the session runs, the writing guest
 * included. Not in the seconds: switching the simulated guest's dirty log on and off, and making
 * the target's memory, taking these measurements. Memory of the tool: RssAnon and RssShmem (send
 * rings; what is mapped twice counts twice) at COMMIT, less the guest's pages.
 */
#include <errno.h>
#include <fcntl.h>
#include <lz4.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zstd.h>

#include <openssl/evp.h>

#include "migrate/channel.h"
#include "migrate/channel_io.h"
#include "migrate/guest_sim.h"
#include "migrate/session.h"

#define PAGE	   PGR_PAGE_SIZE
#define BLOCK	   (64u << 10)
#define RECORD	   (16u << 10)
#define TIMEOUT_MS 60000u
#define CACHE	   (64u << 20)
#define LIMIT_RUNS 3

static struct pgr_error err;
static const uint8_t session[PGR_SESSION_SIZE] = "bench_engine"; /* one at a time */
static char folder[] = "/tmp/bench_engine.XXXXXX"; /* the identity; one for both ends */
static bool folder_made;

static void remove_folder(void)
{
	static const char *const names[] = {"/key.pem", "/cert.pem", "/trusted/bench.pem",
					    "/trusted", ""};

	for (size_t i = 0; folder_made && i < sizeof(names) / sizeof(names[0]); i++) {
		char path[64];

		snprintf(path, sizeof(path), "%s%s", folder, names[i]);
		remove(path);
	}
}

__attribute__((noreturn)) static void die(const char *what)
{
	fprintf(stderr, "bench_engine: %s\n", what);
	exit(1);
}

static void must(int rc)
{
	if (rc < 0)
		die(err.text);
}

static double clock_s(clockid_t id)
{
	struct timespec t;

	clock_gettime(id, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- what an end of a session costs ---- */

struct cost {
	double cpu;	   /* seconds */
	double aside_wall; /* dirty log or fresh memory: in wall and CPU time, to be taken off */
	double aside_cpu;
	double rss_mib;	    /* of the tool itself */
	double buffers_mib; /* what the session says of itself */
};

struct probe {
	struct guest_sim *(*guest)(struct probe *p);
	struct guest_source *source;
	struct guest_sink *sink;
	double rss_mib;
	double wall, cpu; /* of measuring that */
};

static struct guest_sim *guest_of_source(struct probe *p)
{
	return guest_sim_of_source(p->source);
}

static struct guest_sim *guest_of_sink(struct probe *p)
{
	return guest_sim_of_sink(p->sink);
}

static double rss_mib(void)
{
	FILE *f = fopen("/proc/self/status", "r");
	char line[256];
	unsigned long kib, sum = 0;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "RssAnon: %lu", &kib) == 1 ||
		    sscanf(line, "RssShmem: %lu", &kib) == 1)
			sum += kib;
	if (!f)
		die("cannot read /proc/self/status");
	fclose(f);
	return (double)sum / 1024;
}

/* As RssAnon counts it: present in the page tables. */
static double guest_resident_mib(struct guest_sim *g)
{
	enum { CHUNK = 4096 };
	static uint64_t entry[CHUNK];
	struct guest_sim_status st;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uintptr_t base = (uintptr_t)guest_sim_page(g, 0);
	uint64_t resident = 0;

	guest_sim_status(g, &st);
	if (fd < 0 || !base)
		die("cannot read /proc/self/pagemap, or the guest's first page is absent");
	for (uint64_t pfn = 0; pfn < st.nr_pfns; pfn += CHUNK) {
		uint64_t n = st.nr_pfns - pfn < CHUNK ? st.nr_pfns - pfn : CHUNK;

		if (pread(fd, entry, n * sizeof(entry[0]),
			  (off_t)((base / PAGE + pfn) * sizeof(entry[0]))) !=
		    (ssize_t)(n * sizeof(entry[0])))
			die("short read of /proc/self/pagemap");
		for (uint64_t i = 0; i < n; i++)
			resident += entry[i] >> 63;
	}
	close(fd);
	return (double)resident * PAGE / (1 << 20);
}

static int measure_at_mark(void *ctx, enum session_mark mark, struct pgr_error *e)
{
	struct probe *p = ctx;
	double wall = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_THREAD_CPUTIME_ID);

	(void)e;
	/* The last moment at which all buffers are still there. */
	if (mark != SESSION_MARK_COMMIT)
		return 0;
	p->rss_mib = rss_mib() - guest_resident_mib(p->guest(p));
	p->wall = clock_s(CLOCK_MONOTONIC) - wall;
	p->cpu = clock_s(CLOCK_THREAD_CPUTIME_ID) - cpu;
	return 0;
}

static void say(void *ctx, enum session_log level, const char *text)
{
	(void)ctx;
	if (level == SESSION_WARNING)
		fprintf(stderr, "bench_engine: %s\n", text);
}

/* ---- connections ---- */

struct hello {
	uint32_t channel;
	uint32_t purpose;
};

struct end {
	bool tls;
	struct tls_identity *id;
	int listener;
	uint16_t port;
};

static int secure(struct end *e, struct channel *c, enum tls_role role, struct channel **out,
		  struct pgr_error *why)
{
	*out = c;
	return e->tls ? channel_tls(c, role, e->id, NULL, NULL, out, why) : 0;
}

static int connect_channel(void *ctx, unsigned channel, enum pgr_purpose purpose,
			   struct channel **out, struct pgr_error *why)
{
	struct end *e = ctx;
	struct hello h = {channel, purpose};
	struct iovec iov = {.iov_base = &h, .iov_len = sizeof(h)};
	struct channel *c = NULL;
	int fd;
	int rc = channel_tcp_connect("127.0.0.1", e->port, TIMEOUT_MS, -1, &fd, why);

	if (!rc)
		rc = channel_from_fd(fd, TIMEOUT_MS, "target", &c, why);
	if (!rc)
		rc = c->ops->write(c, &iov, 1, why);
	return rc ? rc : secure(e, c, TLS_CLIENT, out, why);
}

static int accept_channel(void *ctx, unsigned timeout_ms, unsigned *channel,
			  enum pgr_purpose *purpose, struct channel **out, struct pgr_error *why)
{
	struct end *e = ctx;
	int64_t until = channel_now_ns() + (int64_t)timeout_ms * 1000000;
	struct channel *c;
	struct hello h;
	int rc = channel_wait(e->listener, POLLIN, -1, until);

	if (rc)
		return pgr_fail_errno(why, rc, "no connection came");
	rc = channel_from_fd(accept(e->listener, NULL, NULL), TIMEOUT_MS, "source", &c, why);
	if (!rc)
		rc = c->ops->read(c, &h, sizeof(h), why);
	if (rc)
		return rc;
	*channel = h.channel;
	*purpose = h.purpose;
	return secure(e, c, TLS_SERVER, out, why);
}

/* ---- the target: a process of its own ---- */

static struct cost cost_since(double cpu, const struct probe *p, const struct session_result *r)
{
	return (struct cost){.cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID) - cpu,
			     .rss_mib = p->rss_mib,
			     .buffers_mib = (double)r->peak_buffers / (1 << 20)};
}

static const struct guest_sink_ops *sim_sink_ops;
static uint64_t sink_pfns;
static pthread_mutex_t sink_lock = PTHREAD_MUTEX_INITIALIZER;
static bool sink_populated;
static double populate_wall, populate_cpu;

static int create_noting(struct guest_sink *s, const struct guest_description *d,
			 struct pgr_error *e)
{
	sink_pfns = d->info.nr_pfns;
	return sim_sink_ops->create(s, d, e);
}

/* At the first batch nothing is touched yet. */
static int populate(uint8_t *base, struct pgr_error *e)
{
	double wall = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_THREAD_CPUTIME_ID);
	size_t length = sink_pfns * PAGE;

	if (madvise(base, length, MADV_HUGEPAGE) || madvise(base, length, MADV_POPULATE_WRITE))
		return pgr_fail_errno(e, -errno, "cannot populate the guest's memory");
	populate_wall = clock_s(CLOCK_MONOTONIC) - wall;
	populate_cpu = clock_s(CLOCK_THREAD_CPUTIME_ID) - cpu;
	sink_populated = true;
	return 0;
}

/*
 * Fresh memory costs what the machine below this one makes of it, which varies by a factor of ten.
 * So both QEMU's target and ours get their memory before, in huge pages as QEMU has it by default:
 * QEMU's by prealloc=on, ours here, where the time is known.
 */
static int map_populated(struct guest_sink *s, unsigned worker, const uint64_t *pfns, unsigned nr,
			 struct guest_batch *b, struct pgr_error *e)
{
	int rc = sim_sink_ops->map(s, worker, pfns, nr, b, e);

	pthread_mutex_lock(&sink_lock);
	if (!rc && !sink_populated)
		rc = populate(b->page[0] - pfns[0] * PAGE, e);
	pthread_mutex_unlock(&sink_lock);
	return rc;
}

static void answer_query(struct end *e)
{
	enum pgr_purpose purpose;
	struct channel *c;
	unsigned channel;

	if (accept_channel(e, 1000, &channel, &purpose, &c, &err))
		return;
	if (purpose == PGR_PURPOSE_QUERY && target_answer(c, session, PGR_STATE_RUNNING, &err))
		fprintf(stderr, "bench_engine: %s\n", err.text);
	c->ops->close(c);
}

__attribute__((noreturn)) static void target_main(bool tls, const char *identity)
{
	struct guest_sink_ops populated_before;
	struct end e = {.tls = tls};
	struct probe probe = {.guest = guest_of_sink};
	struct session_owner owner = {.ctx = &probe, .mark = measure_at_mark, .message = say};
	struct target_params p = {.accept = accept_channel, .accept_ctx = &e};
	struct session_result result;
	struct cost cost;
	double cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
	int fds[4];

	if (tls)
		must(tls_identity_load(identity, &e.id, &err));
	must(guest_sim_sink_open(NULL, NULL, 0, &probe.sink, &err));
	sim_sink_ops = probe.sink->ops;
	populated_before = *sim_sink_ops;
	populated_before.create = create_noting;
	populated_before.map = map_populated;
	probe.sink->ops = &populated_before;
	must(channel_tcp_listen("127.0.0.1", &e.port, fds, &err));
	e.listener = fds[0];
	printf("%u\n", e.port);
	fflush(stdout);
	must(target_run(probe.sink, &p, &owner, &result, &err));
	cost = cost_since(cpu, &probe, &result);
	/* The source waits meanwhile, with the guest stopped. */
	printf("%.6f %.3f %.6f %.6f\n", cost.cpu, cost.rss_mib, populate_wall + probe.wall,
	       populate_cpu + probe.cpu);
	fflush(stdout);
	/*
	 * The guest runs here now; it ends with the process, which the source ends. Until then this is
	 * what a daemon does for a session that is over.
	 */
	for (;;)
		answer_query(&e);
}

/* Not by fork(): the guest's pages would become copy-on-write, and the next move would pay. */
static pid_t start_target(const struct end *e, FILE **answers)
{
	static char name[] = "bench_engine", option[] = "--target", tls[] = "tls", tcp[] = "tcp";
	char *argv[] = {name, option, e->tls ? tls : tcp, folder, NULL};
	posix_spawn_file_actions_t actions;
	int fds[2];
	pid_t pid;

	if (pipe2(fds, O_CLOEXEC) || posix_spawn_file_actions_init(&actions) ||
	    posix_spawn_file_actions_adddup2(&actions, fds[1], STDOUT_FILENO) ||
	    posix_spawn(&pid, "/proc/self/exe", &actions, NULL, argv, environ))
		die("cannot start the target's process");
	posix_spawn_file_actions_destroy(&actions);
	close(fds[1]);
	*answers = fdopen(fds[0], "r");
	if (!*answers)
		die("fdopen");
	return pid;
}

/* ---- the source ---- */

struct setting {
	bool tls;
	enum encode_method method;
	unsigned channels;
	const char *text;
};

static struct setting parse_setting(const char *text)
{
	struct setting s = {.text = text, .method = ENCODE_NONE};
	char transport[8], method[8];

	if (sscanf(text, "%7[a-z]:%7[a-z0-9]:%u", transport, method, &s.channels) != 3)
		die("a setting is TRANSPORT:METHOD:CHANNELS, as in tls:lz4:2");
	s.tls = strcmp(transport, "tls") == 0;
	if (!encode_method_parse(method, &s.method) || (!s.tls && strcmp(transport, "tcp") != 0))
		die("a setting is tcp or tls, none, lz4 or zstd, and a number of channels");
	return s;
}

/*
 * The source's operations with two changes: a guest that has moved stays here, suspended, so that
 * it can be moved again; and what the simulated guest's dirty log costs (the kernel's work on page
 * tables, a hypervisor's business in earnest) is measured apart.
 */
static const struct guest_source_ops *sim_ops;
static double log_wall, log_cpu;

static int keep(struct guest_source *g, struct pgr_error *e)
{
	(void)g;
	(void)e;
	return 0;
}

static int timed(int (*op)(struct guest_source *g, struct pgr_error *e), struct guest_source *g,
		 struct pgr_error *e)
{
	double wall = clock_s(CLOCK_MONOTONIC), cpu = clock_s(CLOCK_THREAD_CPUTIME_ID);
	int rc = op(g, e);

	log_wall += clock_s(CLOCK_MONOTONIC) - wall;
	log_cpu += clock_s(CLOCK_THREAD_CPUTIME_ID) - cpu;
	return rc;
}

static int timed_log_start(struct guest_source *g, struct pgr_error *e)
{
	return timed(sim_ops->log_start, g, e);
}

static int timed_log_stop(struct guest_source *g, struct pgr_error *e)
{
	return timed(sim_ops->log_stop, g, e);
}

static void move(struct guest_source *g, const struct setting *s, const char *content,
		 uint64_t downtime_ms)
{
	struct end e = {.tls = s->tls};
	struct probe probe = {.guest = guest_of_source, .source = g};
	struct session_owner owner = {.ctx = &probe, .mark = measure_at_mark, .message = say};
	struct source_params p = {
		.channels = s->channels,
		.encode = {.method = s->method, .cache_bytes = CACHE},
		.policy = {.downtime_ns = downtime_ms * 1000000, .min_speed = 100},
		.connect = connect_channel,
		.connect_ctx = &e,
	};
	struct session_result r;
	struct cost here, there;
	FILE *answers;
	pid_t pid;
	unsigned port;
	double cpu, wall;

	/* What an earlier move has freed is not this one's. */
	malloc_trim(0);
	pid = start_target(&e, &answers);
	if (e.tls)
		must(tls_identity_load(folder, &e.id, &err));
	memcpy(p.session, session, sizeof(session));
	if (fscanf(answers, "%u", &port) != 1)
		die("the target did not start");
	e.port = (uint16_t)port;
	log_wall = log_cpu = 0;
	cpu = clock_s(CLOCK_PROCESS_CPUTIME_ID);
	wall = clock_s(CLOCK_MONOTONIC);
	must(source_run(g, &p, &owner, &r, &err));
	wall = clock_s(CLOCK_MONOTONIC) - wall;
	here = cost_since(cpu, &probe, &r);
	here.aside_wall = log_wall + probe.wall;
	here.aside_cpu = log_cpu + probe.cpu;
	if (fscanf(answers, "%lf %lf %lf %lf", &there.cpu, &there.rss_mib, &there.aside_wall,
		   &there.aside_cpu) != 4)
		die("the target failed");
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	fclose(answers);
	tls_identity_free(e.id);
	must(g->ops->resume(g, &err));
	printf("{\"who\": \"pagurus\", \"content\": \"%s\", \"setting\": \"%s\", \"memory\": %llu, \"bytes\": %llu, \"seconds\": %.4f, "
	       "\"cpu_source\": %.4f, \"cpu_target\": %.4f, \"rss_source\": %.1f, \"rss_target\": %.1f, \"buffers\": %.1f, "
	       "\"downtime\": %.4f, \"rounds\": %u, \"log_seconds\": %.4f, \"log_cpu\": %.4f, \"fresh_seconds\": %.4f}\n",
	       content, s->text, (unsigned long long)r.memory_bytes, (unsigned long long)r.bytes,
	       wall - here.aside_wall - there.aside_wall, here.cpu - here.aside_cpu,
	       there.cpu - there.aside_cpu, here.rss_mib, there.rss_mib, here.buffers_mib,
	       (double)r.stop.total / 1e9, r.rounds, here.aside_wall, here.aside_cpu,
	       there.aside_wall);
	fflush(stdout);
}

static enum guest_sim_content parse_content(const char *text)
{
	for (unsigned c = GUEST_SIM_ZERO; c <= GUEST_SIM_MIXED; c++)
		if (strcmp(text, guest_sim_content_name(c)) == 0)
			return c;
	die("contents are zero, text, binaries, random and mixed");
}

static void make_identity(void)
{
	char path[64], pem[8192];
	FILE *f;
	size_t n;

	if (!mkdtemp(folder))
		die("cannot make a folder under /tmp");
	folder_made = true;
	must(tls_identity_create(folder, "bench", false, &err));
	snprintf(path, sizeof(path), "%s/cert.pem", folder);
	f = fopen(path, "r");
	if (!f)
		die("no certificate was made");
	n = fread(pem, 1, sizeof(pem) - 1, f);
	pem[n] = '\0';
	fclose(f);
	must(tls_identity_trust(folder, "bench", pem, &err));
}

struct request {
	enum guest_sim_content content;
	uint64_t mib;
	uint64_t working_set, rate; /* MiB, MiB/s */
	uint64_t downtime_ms;
};

static struct guest_sim *make_guest(const struct request *q)
{
	struct guest_sim_options o = {
		.name = "bench",
		.seed = 1,
		.memory = q->mib << 20,
		.region = {{q->content, 1}},
		.nr_regions = 1,
		.workload = {.working_set = q->working_set << 20,
			     .rate = q->rate << 20,
			     .pattern = GUEST_SIM_UNIFORM,
			     .write_bytes = 256,
			     .content = GUEST_SIM_RANDOM},
	};
	struct guest_sim *g;

	must(guest_sim_create(&o, &g, &err));
	return g;
}

static void move_all(const struct request *q, char **settings, int nr)
{
	struct guest_sim *guest = make_guest(q);
	struct guest_source_ops keeping;
	struct guest_source *g;

	make_identity();
	must(guest_sim_source_open(guest, NULL, 0, &g, &err));
	sim_ops = g->ops;
	keeping = *sim_ops;
	keeping.destroy = keep;
	keeping.log_start = timed_log_start;
	keeping.log_stop = timed_log_stop;
	g->ops = &keeping;
	for (int i = 0; i < nr; i++) {
		struct setting s = parse_setting(settings[i]);

		move(g, &s, guest_sim_content_name(q->content), q->downtime_ms);
	}
	g->ops->close(g);
	guest_sim_destroy(guest);
}

/* ---- the same memory for others ---- */

static void fill_file(const struct request *q, const char *path)
{
	struct guest_sim *g = make_guest(q);
	FILE *f = fopen(path, "w");

	if (!f)
		die("cannot create the file");
	for (uint64_t pfn = 0; pfn < q->mib << 8; pfn++)
		if (fwrite(guest_sim_page(g, pfn), PAGE, 1, f) != 1)
			die("cannot write the file");
	if (fclose(f))
		die("cannot write the file");
	guest_sim_destroy(g);
}

/* ---- limits ---- */

static uint8_t *memory;
static size_t bytes;
static volatile uint64_t sink;

static void run_memcpy(void)
{
	static uint8_t to[256u << 10];

	for (size_t at = 0; at < bytes; at += sizeof(to)) {
		memcpy(to, memory + at, sizeof(to));
		/* The copy must not be optimised away. */
		__asm__ volatile("" : : "r"(to) : "memory");
	}
}

static void run_zero(void)
{
	for (size_t at = 0; at < bytes; at += PAGE)
		sink += encode_is_zero(memory + at);
}

static void run_lz4(void)
{
	static char to[LZ4_COMPRESSBOUND(BLOCK)];

	for (size_t at = 0; at < bytes; at += BLOCK)
		sink += (uint64_t)LZ4_compress_default((char *)memory + at, to, BLOCK, sizeof(to));
}

static void run_zstd(void)
{
	static ZSTD_CCtx *c;
	static char *to;
	size_t block = 1u << 20, most = ZSTD_compressBound(block);

	c = c ? c : ZSTD_createCCtx();
	to = to ? to : malloc(most);
	if (!c || !to)
		die("no memory");
	for (size_t at = 0; at < bytes; at += block)
		sink += ZSTD_compressCCtx(c, to, most, memory + at, block, 1);
}

static void run_aes(void)
{
	static const unsigned char zero[32];
	static unsigned char to[RECORD + 16];
	EVP_CIPHER_CTX *c = EVP_CIPHER_CTX_new();
	int n;

	if (!c || !EVP_EncryptInit_ex(c, EVP_aes_128_gcm(), NULL, zero, zero))
		die("no AES-GCM");
	for (size_t at = 0; at < bytes; at += RECORD) {
		EVP_EncryptInit_ex(c, NULL, NULL, NULL, zero);
		EVP_EncryptUpdate(c, to, &n, memory + at, RECORD);
		EVP_EncryptFinal_ex(c, to + RECORD, &n);
		EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_GET_TAG, 16, to);
	}
	EVP_CIPHER_CTX_free(c);
}

static void limits(const struct request *q)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} all[] = {{"memcpy", run_memcpy},
		   {"zero_test", run_zero},
		   {"lz4", run_lz4},
		   {"zstd", run_zstd},
		   {"aes_128_gcm", run_aes}};
	struct guest_sim *g = make_guest(q);

	memory = guest_sim_page(g, 0);
	bytes = q->mib << 20;
	printf("{\"who\": \"limit\", \"content\": \"%s\"", guest_sim_content_name(q->content));
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		double best = 0;

		/* Of the processor's time, so that others do not count, and the best: it is a limit. */
		for (unsigned k = 0; k < LIMIT_RUNS; k++) {
			double t = clock_s(CLOCK_THREAD_CPUTIME_ID);

			all[i].run();
			t = (double)bytes / (clock_s(CLOCK_THREAD_CPUTIME_ID) - t) / 1e9;
			best = t > best ? t : best;
		}
		printf(", \"%s\": %.4f", all[i].name, best);
	}
	printf("}\n");
	guest_sim_destroy(g);
}

/* ---- the command line ---- */

static uint64_t number(const char *text, uint64_t most)
{
	char *rest;
	unsigned long long n;

	if (!text)
		die("an option lacks its number");
	errno = 0;
	n = strtoull(text, &rest, 10);
	if (errno || rest == text || *rest || n > most)
		die("a number is wrong or too large");
	return n;
}

int main(int argc, char **argv)
{
	struct request q = {.mib = 1024, .downtime_ms = 300};
	int at = 3;

	if (argc == 4 && strcmp(argv[1], "--target") == 0)
		target_main(strcmp(argv[2], "tls") == 0, argv[3]);
	if (argc < 3)
		die("usage: bench_engine --limits|--fill|--move CONTENT ... (see the top of bench_engine.c)");
	atexit(remove_folder);
	mallopt(M_MMAP_THRESHOLD,
		1 << 20); /* what is freed shall go back, for the next move's figure */
	q.content = parse_content(argv[2]);
	if (strcmp(argv[1], "--fill") == 0)
		at++;
	for (; at < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
		if (strcmp(argv[at], "--mib") == 0)
			q.mib = number(argv[at + 1], 1u << 20);
		else if (strcmp(argv[at], "--working-set") == 0)
			q.working_set = number(argv[at + 1], 1u << 20);
		else if (strcmp(argv[at], "--rate") == 0)
			q.rate = number(argv[at + 1], 1u << 20);
		else if (strcmp(argv[at], "--downtime") == 0)
			q.downtime_ms = number(argv[at + 1], 1u << 20);
		else
			die("an option is unknown");
	}
	if (strcmp(argv[1], "--limits") == 0)
		limits(&q);
	else if (strcmp(argv[1], "--fill") == 0 && argc > 3)
		fill_file(&q, argv[3]);
	else if (strcmp(argv[1], "--move") == 0)
		move_all(&q, argv + at, argc - at);
	else
		die("--limits, --fill FILE or --move");
	return 0;
}
