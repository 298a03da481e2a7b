/* Network namespaces that are used again: making one, and ending it, takes the kernel longer than all else that a container is
 * made of together.
 *
 * What may have one (the plan's step says so) has no capability, and its namespaces are the host's: nobody inside has a say over
 * interfaces, addresses, routes, filters or sysctls. What is left that could tell a network in which a container was from a new
 * one is what the kernel counts in it, and who is still there. So it is used again only if
 *   - all of the container's processes are gone,
 *   - nobody was ever let into it by us (network_mode "service:", an exec, a probe),
 *   - nobody in it had a way to hand out fds: neither a place that others see (the plan's to say) nor a standard stream that is
 *     more than a pipe, a file or a terminal (init's to say). Not every fd that holds a namespace is counted in it: an open
 *     /proc/net/tcp or unix shows for ever what goes on there; and
 *   - the witnesses below read to the byte what they read when it was new: no packet has passed, not even on loopback, so that
 *     there is no connection that lingers, no metric and no neighbour; none was refused; no route was asked for; no key for TCP
 *     Fast Open was made; and no socket is left.
 * What is on its way by a timer is no witness yet: there must be none. Having left a multicast group is reported up to some
 * seconds later in the versions of IGMP and MLD that are standard, and never in the first ones, which loopback is told to speak.
 * An fd of the namespace itself that somebody keeps is of no use: entering it takes a capability over the host's.
 * Any other is closed, and with it ends. Containers that find none make their own. */
#define _GNU_SOURCE
#include "launcher.h"

#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>

#define MAX_NETWORKS 32
#define FIRST_FD 210 /* of theirs: behind what comes with requests, so that they are together and nothing else is there */
#define MAX_SEEN 16384 /* bytes; a host whose witnesses say more has none that are used again */

static const char *const witnesses[] = { /* below /proc; each is of the network in which it was opened */
	"self/net/dev", "self/net/snmp", "self/net/snmp6", "self/net/ip6_flowlabel", "self/net/rt6_stats",
	"sys/net/ipv4/tcp_fastopen_key", /* zeros until a server first asks for it (4.15) */
	"self/net/sockstat", /* its first line: the others are of the whole host */
};
#define WITNESSES (int)(sizeof witnesses / sizeof *witnesses)
#define SOCKETS (WITNESSES - 1)

static struct network { /* no child inherits the table, so no child pays for it */
	bool there;
	int fd, witness[WITNESSES]; /* open, for opening takes longer than reading; -1: this kernel has none of the name */
	uint32_t size;
	char seen[MAX_SEEN];
} *networks;

static int idle[MAX_NETWORKS], idle_count, made, wanted, used;
static char now_seen[MAX_SEEN];

static int bring_loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
	int error, fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	error = ioctl(fd, SIOCSIFFLAGS, &request) < 0 ? -errno : 0;
	close(fd);
	return error;
}

int step_loopback_up(struct context *context, const struct step *step)
{
	(void)context;
	(void)step;
	return bring_loopback_up();
}

int step_network(struct context *context, const struct step *step)
{
	(void)step;
	if (context->network >= 0)
		return setns(context->network, (int)NEW_NET) < 0 ? -errno : 0;
	return unshare((int)NEW_NET) < 0 ? -errno : bring_loopback_up();
}

/* In an init that stays a while with what it was cloned with: those that are closed meanwhile must end. */
void close_networks(void)
{
	(void)syscall(NR_close_range, (unsigned)FIRST_FD, FIRST_FD + MAX_NETWORKS * (1u + WITNESSES) - 1, 0);
}

static void forget_network(struct network *network)
{
	for (int i = 0; i < WITNESSES; i++)
		if (network->witness[i] >= 0)
			close(network->witness[i]);
	if (network->fd >= 0)
		close(network->fd);
	network->there = false;
}

/* Returns an fd among the others of these, or -errno. */
static int open_low(const char *path)
{
	int fd, low = openat(proc_fd, path, O_RDONLY | O_CLOEXEC);

	if (low < 0)
		return -errno;
	fd = fcntl(low, F_DUPFD_CLOEXEC, FIRST_FD);
	if (fd < 0)
		fd = -errno;
	close(low);
	return fd;
}

/* Those of the network that we are in, and itself. */
static int open_witnesses(struct network *network)
{
	int error = 0;

	for (int i = 0; i < WITNESSES; i++)
		network->witness[i] = -1;
	network->fd = open_low("self/ns/net");
	if (network->fd < 0)
		return network->fd;
	for (int i = 0; i < WITNESSES && !error; i++) {
		int fd = open_low(witnesses[i]);
		if (fd >= 0)
			network->witness[i] = fd;
		else if (fd != -ENOENT)
			error = fd;
	}
	return error;
}

/* Returns the bytes or -errno. */
static ssize_t hear_witness(int fd, char *out, size_t space)
{
	size_t size = 0;
	ssize_t n;

	while ((n = pread(fd, out + size, space - size, (off_t)size)) > 0)
		size += (size_t)n;
	if (n < 0)
		return -errno;
	return size < space ? (ssize_t)size : -E2BIG; /* full: there may be more */
}

/* As `hear_witness`, one after another. */
static ssize_t hear_witnesses(const struct network *network, char *out)
{
	ssize_t size = 0, n = 0;

	for (int i = 0; i < WITNESSES; i++, size += n) {
		n = network->witness[i] < 0 ? 0 : hear_witness(network->witness[i], out + size, MAX_SEEN - (size_t)size);
		if (n < 0)
			return n;
		const char *line = i == SOCKETS ? memchr(out + size, '\n', (size_t)n) : NULL;
		if (line)
			n = line - (out + size);
	}
	return size;
}

/* Those in which nothing is sent once a group is left. */
static int speak_first_versions(void)
{
	static const char *const files[] = {"sys/net/ipv4/conf/lo/force_igmp_version", "sys/net/ipv6/conf/lo/force_mld_version"};

	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		int error, fd = openat(proc_fd, files[i], O_WRONLY | O_CLOEXEC);
		if (fd < 0 && errno == ENOENT) /* a kernel without */
			continue;
		if (fd < 0)
			return -errno;
		error = write(fd, "1", 1) < 0 ? -errno : 0;
		close(fd);
		if (error)
			return error;
	}
	return 0;
}

/* There is no going on elsewhere: the next container's network would be that one. */
static void go_home(int own)
{
	const struct timespec pause = {0, 1000000};

	while (setns(own, (int)NEW_NET) < 0) {
		if (errno != ENOMEM)
			give_up(errno);
		nanosleep(&pause, NULL);
	}
	close(own);
}

static bool is_as_new(const struct network *network)
{
	return hear_witnesses(network, now_seen) == (ssize_t)network->size && !memcmp(now_seen, network->seen, network->size);
}

static bool fill(struct network *network)
{
	int error, own = openat(proc_fd, "self/ns/net", O_RDONLY | O_CLOEXEC);
	ssize_t size = -1;

	if (own < 0)
		return false;
	if (unshare((int)NEW_NET) < 0) {
		close(own);
		return false;
	}
	network->there = true;
	error = open_witnesses(network);
	if (!error)
		error = speak_first_versions();
	if (!error)
		error = bring_loopback_up();
	go_home(own);
	if (!error)
		size = hear_witnesses(network, network->seen);
	if (size <= 0) {
		forget_network(network);
		return false;
	}
	network->size = (uint32_t)size;
	return true;
}

/* Its number, or -1 where there is none: the container makes its own then, and another will be made ahead; not more of them than
 * there are containers at once, for whose inits each is some more fds to close. */
int take_network(int *fd)
{
	used++;
	if (!idle_count) {
		if (made + wanted < (used < MAX_NETWORKS ? used : MAX_NETWORKS))
			wanted++;
		return *fd = -1;
	}
	idle_count--;
	*fd = networks[idle[idle_count]].fd;
	return idle[idle_count];
}

/* After its container, which is told already. `shared`: somebody else was let in, or may have got something out of it. */
void return_network(int number, bool shared)
{
	if (number == NO_NETWORK)
		return;
	used--;
	if (number < 0)
		return;
	if (!shared && is_as_new(&networks[number])) {
		idle[idle_count++] = number;
		return;
	}
	forget_network(&networks[number]);
	made--;
	wanted++;
}

bool networks_wanted(void)
{
	return wanted > 0;
}

static bool make_table(void)
{
	const size_t size = MAX_NETWORKS * sizeof *networks;
	void *table = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (table == MAP_FAILED || madvise(table, size, MADV_DONTFORK) < 0)
		return false;
	networks = table;
	return true;
}

/* When there is nothing else to do. */
void make_network(void)
{
	int number = 0;

	wanted--;
	while (networks && networks[number].there)
		number++;
	if ((networks || make_table()) && fill(&networks[number])) {
		made++;
		memmove(idle + 1, idle, (size_t)idle_count++ * sizeof *idle); /* the one used last is the first to be used again */
		idle[0] = number;
	} else {
		wanted = 0; /* until the next one is asked for; what is wrong is that one's to say */
	}
}
