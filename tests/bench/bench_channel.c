/* SPDX-License-Identifier: MIT */
/*
 * What a channel carries over loopback TCP, in clear and through TLS, beside what this processor does alone in the same run:
 * memcpy and AES-GCM in records of 16 KiB, as TLS here uses it and by OpenSSL itself. One line a figure; MB and GB are 10^6 and 10^9 bytes.
 *
 *	bench_channel [MiB]	(default 1024 for each transfer)
 *
 * Every transfer is made five times in turn with the others and the median and the range are given: other programs use these
 * processors too. CPU is that of the whole process, in seconds per GB.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <openssl/evp.h>

#include "migrate/channel.h"
#include "migrate/channel_io.h"
#include "common/tls_gcm.h"

#define RUNS   5
#define PIECE  (256u << 10) /* about a batch of pages */
#define RECORD (16u << 10)

static struct pgr_error err;
static size_t amount = (size_t)1024 << 20;
static unsigned char *source, *sink;

static void must(int ret)
{
	if (ret < 0) {
		fprintf(stderr, "bench_channel: %s\n", err.text);
		exit(1);
	}
}

static double now(void)
{
	return (double)channel_now_ns() / 1e9;
}

static double cpu(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)u.ru_utime.tv_sec + (double)u.ru_stime.tv_sec +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* ---- what the processor does alone ---- */

static void run_memcpy(void)
{
	for (size_t at = 0; at < amount; at += PIECE) {
		memcpy(sink, source, PIECE);
		/* The copy must not be optimised away. */
		__asm__ volatile("" : : "r"(sink) : "memory");
	}
}

static void run_aead(const char *name, const char *properties)
{
	static const unsigned char zero[32];
	unsigned char tag[16];
	EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, properties);
	EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
	int n;

	if (!cipher || !ctx || !EVP_EncryptInit_ex2(ctx, cipher, zero, zero, NULL))
		exit(1);
	for (size_t at = 0; at < amount; at += RECORD) {
		EVP_EncryptInit_ex2(ctx, NULL, NULL, zero, NULL);
		EVP_EncryptUpdate(ctx, sink, &n, source + at % PIECE, RECORD);
		EVP_EncryptFinal_ex(ctx, tag, &n);
		EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, sizeof(tag), tag);
	}
	EVP_CIPHER_CTX_free(ctx);
	EVP_CIPHER_free(cipher);
}

static void run_aes128(void)
{
	run_aead("AES-128-GCM", tls_gcm_properties());
}

static void run_aes256(void)
{
	run_aead("AES-256-GCM", tls_gcm_properties());
}

static void run_aes128_openssl(void)
{
	run_aead("AES-128-GCM", "provider=default");
}

static void run_aes256_openssl(void)
{
	run_aead("AES-256-GCM", "provider=default");
}

/* ---- transfers ---- */

struct link {
	struct channel *c[2];
	struct tls_identity *id;
	pthread_t thread;
	size_t amount;
};

static char folder[] = "/tmp/bench_channel.XXXXXX";

static struct tls_identity *identity(void)
{
	static struct tls_identity *id;
	char path[64], pem[8192];
	FILE *f;
	size_t n;

	if (id)
		return id;
	if (!mkdtemp(folder))
		exit(1);
	must(tls_identity_create(folder, "bench", false, &err));
	snprintf(path, sizeof(path), "%s/cert.pem", folder);
	f = fopen(path, "r");
	if (!f)
		exit(1);
	n = fread(pem, 1, sizeof(pem) - 1, f);
	pem[n] = '\0';
	fclose(f);
	must(tls_identity_trust(folder, "bench", pem, &err));
	must(tls_identity_load(folder, &id, &err));
	return id;
}

static void remove_folder(void)
{
	static const char *const names[] = {"key.pem", "cert.pem", "trusted/bench.pem", "trusted",
					    "."};
	char path[64];

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
		remove(i == 4 ? folder : path);
	}
}

static void *serve(void *arg)
{
	struct link *l = arg;

	must(channel_tls(l->c[1], TLS_SERVER, l->id, NULL, NULL, &l->c[1], &err));
	return NULL;
}

static void connect_link(struct link *l, bool tls)
{
	uint16_t port = 0;
	int fds[4];
	int fd;

	must(channel_tcp_listen("127.0.0.1", &port, fds, &err));
	must(channel_tcp_connect("127.0.0.1", port, 10000, -1, &fd, &err));
	must(channel_from_fd(fd, 10000, "client", &l->c[0], &err));
	must(channel_wait(fds[0], POLLIN, -1, INT64_MAX));
	must(channel_from_fd(accept(fds[0], NULL, NULL), 10000, "server", &l->c[1], &err));
	close(fds[0]);
	if (!tls)
		return;
	l->id = identity();
	if (pthread_create(&l->thread, NULL, serve, l))
		exit(1);
	must(channel_tls(l->c[0], TLS_CLIENT, l->id, NULL, NULL, &l->c[0], &err));
	pthread_join(l->thread, NULL);
}

static void *receive(void *arg)
{
	struct link *l = arg;
	unsigned char *buf = malloc(PIECE);

	if (!buf)
		exit(1);
	for (size_t at = 0; at < l->amount; at += PIECE)
		must(l->c[1]->ops->read(l->c[1], buf, PIECE, &err));
	free(buf);
	return NULL;
}

static void send_all(struct link *l, size_t iov_size)
{
	struct iovec iov[16];
	unsigned nr = PIECE / iov_size > 16 ? 16 : (unsigned)(PIECE / iov_size);

	for (size_t at = 0; at < l->amount; at += nr * iov_size) {
		for (unsigned i = 0; i < nr; i++) {
			iov[i].iov_base = source + i * iov_size;
			iov[i].iov_len = iov_size;
		}
		must(l->c[0]->ops->write(l->c[0], iov, nr, &err));
	}
}

struct sender {
	struct link *l;
	pthread_t thread;
};

static void *send_thread(void *arg)
{
	send_all(arg, PIECE);
	return NULL;
}

/* Seconds to carry the amount over nr connections together; the handshakes are not counted. */
static double transfer(bool tls, size_t iov_size, unsigned nr, double *cpu_s)
{
	struct link l[4] = {0};
	pthread_t senders[4];
	double start;

	for (unsigned i = 0; i < nr; i++) {
		l[i].amount = amount / nr;
		connect_link(&l[i], tls);
	}
	*cpu_s = cpu();
	start = now();
	for (unsigned i = 0; i < nr; i++) {
		if (pthread_create(&l[i].thread, NULL, receive, &l[i]))
			exit(1);
		if (i > 0 && pthread_create(&senders[i], NULL, send_thread, &l[i]))
			exit(1);
	}
	send_all(&l[0], iov_size);
	for (unsigned i = 0; i < nr; i++) {
		pthread_join(l[i].thread, NULL);
		if (i > 0)
			pthread_join(senders[i], NULL);
	}
	start = now() - start;
	*cpu_s = cpu() - *cpu_s;
	for (unsigned i = 0; i < nr; i++) {
		l[i].c[0]->ops->close(l[i].c[0]);
		l[i].c[1]->ops->close(l[i].c[1]);
	}
	return start;
}

struct row {
	const char *name;
	void (*alone)(void); /* or a transfer: */
	bool tls;
	size_t iov_size;
	unsigned nr;
	double seconds[RUNS];
	double cpu[RUNS];
};

static struct row rows[] = {
	{.name = "memcpy, 256 KiB pieces, 1 thread", .alone = run_memcpy},
	{.name = "AES-128-GCM, 16 KiB records, 1 thread", .alone = run_aes128},
	{.name = "AES-128-GCM, OpenSSL's own", .alone = run_aes128_openssl},
	{.name = "AES-256-GCM, 16 KiB records, 1 thread", .alone = run_aes256},
	{.name = "AES-256-GCM, OpenSSL's own", .alone = run_aes256_openssl},
	{.name = "TCP, 1 connection, 256 KiB writes", .iov_size = PIECE, .nr = 1},
	{.name = "TCP, 1 connection, 16 pieces of 4 KiB", .iov_size = 4096, .nr = 1},
	{.name = "TCP, 2 connections, 256 KiB writes", .iov_size = PIECE, .nr = 2},
	{.name = "TLS, 1 connection, 256 KiB writes", .tls = true, .iov_size = PIECE, .nr = 1},
	{.name = "TLS, 1 connection, 16 pieces of 4 KiB", .tls = true, .iov_size = 4096, .nr = 1},
	{.name = "TLS, 2 connections, 256 KiB writes", .tls = true, .iov_size = PIECE, .nr = 2},
};

#define NR_ROWS (sizeof(rows) / sizeof(rows[0]))

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void run_row(struct row *r, int run)
{
	double start = now();
	double before = cpu();

	if (r->alone) {
		r->alone();
		r->seconds[run] = now() - start;
		r->cpu[run] = cpu() - before;
	} else {
		r->seconds[run] = transfer(r->tls, r->iov_size, r->nr, &r->cpu[run]);
	}
}

int main(int argc, char **argv)
{
	double gb;

	if (argc > 1)
		amount = strtoull(argv[1], NULL, 10) << 20;
	if (argc > 2 || amount == 0 || amount > (size_t)1 << 40) {
		fprintf(stderr, "usage: bench_channel [MiB for each transfer, default 1024]\n");
		return 2;
	}
	gb = (double)amount / 1e9;
	source = malloc(PIECE);
	sink = malloc(PIECE);
	if (!source || !sink)
		return 1;
	memset(source, 0x5a, PIECE);
	for (int run = 0; run < RUNS; run++) {
		for (size_t i = 0; i < NR_ROWS; i++)
			run_row(&rows[i], run);
	}
	printf("%-40s %8s %17s %10s\n", "GB/s", "median", "range", "CPU s/GB");
	for (size_t i = 0; i < NR_ROWS; i++) {
		struct row *r = &rows[i];

		qsort(r->seconds, RUNS, sizeof(double), by_size);
		qsort(r->cpu, RUNS, sizeof(double), by_size);
		printf("%-40s %8.2f %8.2f-%8.2f %10.2f\n", r->name, gb / r->seconds[RUNS / 2],
		       gb / r->seconds[RUNS - 1], gb / r->seconds[0], r->cpu[RUNS / 2] / gb);
	}
	tls_identity_free(identity());
	remove_folder();
	return 0;
}
