/* Reads a leaf and a slice of it through a mount: read FOLDER KEY SLICE, both float32 .npy files. Prints the leaf's sum
 * and the slice's elements. Nothing but the C library. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The elements of a float32 .npy file; *n is how many. Exits on any fault. */
static float *load(const char *path, size_t *n)
{
    unsigned char head[10];
    FILE *f = fopen(path, "rb");
    if (!f || fread(head, 1, 10, f) != 10 || memcmp(head, "\x93NUMPY\x01\x00", 8) != 0) {
        fprintf(stderr, "%s: not readable as .npy\n", path);
        exit(1);
    }
    size_t length = head[8] | (size_t)head[9] << 8;
    char *text = calloc(1, length + 1);
    if (!text || fread(text, 1, length, f) != length || !strstr(text, "'<f4'") ||
        !strstr(text, "'fortran_order': False")) {
        fprintf(stderr, "%s: not float32 in C order: %s\n", path, text ? text : "");
        exit(1);
    }
    *n = 1;
    for (char *p = strchr(text, '(') + 1; *p && *p != ')';) {
        char *end;
        unsigned long size = strtoul(p, &end, 10);
        if (end == p) {
            p++; /* a comma or a space */
            continue;
        }
        *n *= size;
        p = end;
    }
    float *data = malloc(*n * sizeof *data + 1);
    if (!data || fread(data, sizeof *data, *n, f) != *n || fgetc(f) != EOF) {
        fprintf(stderr, "%s: not %zu elements\n", path, *n);
        exit(1);
    }
    free(text);
    fclose(f);
    return data;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    char path[4096];
    size_t n;
    snprintf(path, sizeof path, "%s/%s.npy", argv[1], argv[2]);
    float *data = load(path, &n);
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (double)data[i];
    free(data);
    printf("%zu %.9g\n", n, sum);
    snprintf(path, sizeof path, "%s/%s@%s.npy", argv[1], argv[2], argv[3]);
    data = load(path, &n);
    for (size_t i = 0; i < n; i++)
        printf("%.9g%s", (double)data[i], i + 1 < n ? " " : "\n");
    free(data);
    return 0;
}
