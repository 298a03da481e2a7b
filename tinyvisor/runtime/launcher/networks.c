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

static const char *const witnesses[] = {"dev", "snmp", "snmp6", "sockstat", "ip6_flowlabel", "rt6_stats"};
static const char fast_open_key[] = "sys/net/ipv4/tcp_fastopen_key"; /* zeros until a server first asks for it (4.15) */

static struct network { /* no child inherits the table, so no child pays for it */
	int fd; /* 0: none */
	uint32_t size;
	char seen[MAX_SEEN];
} *networks;

static int idle[MAX_NETWORKS], idle_count, made, wanted;
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
	(void)syscall(NR_close_range, (unsigned)FIRST_FD, FIRST_FD + MAX_NETWORKS - 1u, 0);
}

/* One witness of the network that we are in, or nothing where this kernel has none of the name. */
static ssize_t read_witness(int directory, const char *name, char *out, size_t space)
{
	size_t size = 0;
	ssize_t n;
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	while ((n = read(fd, out + size, space - size)) > 0)
		size += (size_t)n;
	if (n < 0 || size == space) /* full: there may be more */
		n = n < 0 ? -errno : -E2BIG;
	close(fd);
	if (n == 0 && !strcmp(name, "sockstat")) { /* the other lines are of the whole host */
		const char *line = memchr(out, '\n', size);
		size = line ? (size_t)(line - out) : size;
	}
	return n < 0 ? n : (ssize_t)size;
}

/* Of the network that we are in. Returns the bytes or -errno. */
static ssize_t hear_witnesses(char *out)
{
	ssize_t size = 0, n = 0;
	int directory = openat(proc_fd, "self/net", O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (directory < 0)
		return -errno;
	for (size_t i = 0; i < sizeof witnesses / sizeof *witnesses && n >= 0; i++, size += n)
		n = read_witness(directory, witnesses[i], out + size, MAX_SEEN - (size_t)size);
	if (n >= 0)
		n = read_witness(proc_fd, fast_open_key, out + size, MAX_SEEN - (size_t)size);
	close(directory);
	return n < 0 ? n : size + n;
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
	int own = openat(proc_fd, "self/ns/net", O_RDONLY | O_CLOEXEC);
	ssize_t size = -1;

	if (own < 0)
		return false;
	if (setns(network->fd, (int)NEW_NET) == 0) {
		size = hear_witnesses(now_seen);
		go_home(own);
	} else {
		close(own);
	}
	return size == (ssize_t)network->size && !memcmp(now_seen, network->seen, network->size);
}

static bool fill(struct network *network)
{
	int fd, own = openat(proc_fd, "self/ns/net", O_RDONLY | O_CLOEXEC);
	ssize_t size;

	if (own < 0)
		return false;
	if (unshare((int)NEW_NET) < 0) {
		close(own);
		return false;
	}
	size = speak_first_versions() || bring_loopback_up() ? -1 : hear_witnesses(network->seen);
	fd = size > 0 ? openat(proc_fd, "self/ns/net", O_RDONLY | O_CLOEXEC) : -1;
	go_home(own);
	if (fd >= 0) {
		int low = fd;
		fd = fcntl(low, F_DUPFD_CLOEXEC, FIRST_FD);
		close(low);
	}
	if (fd < 0)
		return false;
	network->fd = fd;
	network->size = (uint32_t)size;
	return true;
}

/* Its number, or -1 where there is none: the container makes its own then, and another will be made ahead. */
int take_network(int *fd)
{
	if (!idle_count) {
		if (made + wanted < MAX_NETWORKS)
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
	if (number < 0)
		return;
	if (!shared && is_as_new(&networks[number])) {
		idle[idle_count++] = number;
		return;
	}
	close(networks[number].fd);
	networks[number].fd = 0;
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
	while (networks && networks[number].fd)
		number++;
	if ((networks || make_table()) && fill(&networks[number])) {
		made++;
		memmove(idle + 1, idle, (size_t)idle_count++ * sizeof *idle); /* the one used last is the first to be used again */
		idle[0] = number;
	} else {
		wanted = 0; /* until the next one is asked for; what is wrong is that one's to say */
	}
}
