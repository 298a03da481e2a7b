/* Says when it starts and when it ends, in ns of CLOCK_MONOTONIC, as two 64-bit numbers appended to FILE, and crashes: what lies
 * between the end of one and the start of the next is its supervisor's.
 *
 *   stamp FILE */
#include <fcntl.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	int64_t times[2] = {now(), 0};
	int fd = argc == 2 ? open(argv[1], O_WRONLY | O_APPEND) : -1;

	if (fd < 0)
		return 2;
	times[1] = now();
	return write(fd, times, sizeof times) == sizeof times ? 1 : 2;
}
