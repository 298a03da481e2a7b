/* Instead of a fuzzer, where there is none: runs a target on the files that are named. Options are libFuzzer's. */
#include "kernel.h"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		FILE *file = argv[i][0] == '-' ? NULL : fopen(argv[i], "rb");
		uint8_t *data;
		long size;
		if (argv[i][0] == '-')
			continue;
		if (!file || fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET) || !(data = malloc((size_t)size)) ||
		    fread(data, 1, (size_t)size, file) != (size_t)size)
			return perror(argv[i]), 1;
		(void)fclose(file);
		(void)fprintf(stderr, "%s\n", argv[i]);
		(void)LLVMFuzzerTestOneInput(data, (size_t)size);
		free(data);
	}
	return 0;
}
