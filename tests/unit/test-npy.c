/* SPDX-License-Identifier: Apache-2.0 */
/* The expected headers are np.save's (NumPy 2.4), without the padding; what the parser says of a header is what np.load
 * makes of it. */
#include "core/array/npy.h"

#include "core/base/util.h"
#include "tests/unit/check.h"

static uint8_t *header(const char *descr, unsigned ndim, const uint64_t *shape, size_t *ret_len)
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    ckpt_npy_add_header(&buf, descr, ndim, shape);
    uint8_t *head = ckpt_buf_steal(&buf, ret_len);
    CHECK(head);
    CHECK(*ret_len % 64 == 0 && head[*ret_len - 1] == '\n' && !memcmp(head, "\x93NUMPY", 6));
    return head;
}

/* The dictionary, then spaces up to `total` bytes. */
static void check_header(const char *want, size_t total, const char *descr, unsigned ndim, const uint64_t *shape)
{
    size_t len, want_len = strlen(want);
    CKPT_AUTOFREE uint8_t *head = header(descr, ndim, shape, &len);
    CHECK(len == total && head[6] == 1 && head[7] == 0 && ckpt_le16(head + 8) + 10u == len);
    CHECK(!memcmp(head + 10, want, want_len));
    for (size_t i = 10 + want_len; i < len - 1; i++)
        CHECK(head[i] == ' ');
}

/* Lengths around a change of size: NumPy always pads with a space at least. */
static void check_long(void)
{
    static char descr[65700];
    const uint64_t shape[] = {3, 4};
    for (size_t n = 1; n < sizeof descr - 1; n += n == 200 ? 65100 : 1) {
        memset(descr, 'x', n);
        descr[n] = 0;
        size_t len, text = strlen("{'descr': '', 'fortran_order': False, 'shape': (3, 4), }") + n + 20;
        CKPT_AUTOFREE uint8_t *head = header(descr, 2, shape, &len);
        size_t prefix = head[6] == 1 ? 10 : 12;
        CHECK((prefix == 10 ? ckpt_le16(head + 8) : ckpt_le32(head + 8)) == len - prefix);
        CHECK((head[6] == 1) == ((10 + text + 1) / 64 * 64 + 64 - 10 <= 65535));
        CHECK(len == (prefix + text + 1) / 64 * 64 + 64);
    }
}

/* --- the parser --- */

/* A file of a version with this header; whatever `more` bytes follow. */
static uint8_t *file_of(unsigned version, const char *text, size_t len, size_t *ret_len)
{
    size_t prefix = version >> 8 == 1 ? 10 : 12;
    uint8_t *file = calloc(1, prefix + len);
    memcpy(file, "\x93NUMPY", 6);
    file[6] = (uint8_t)(version >> 8);
    file[7] = (uint8_t)version;
    for (size_t i = 8; i < prefix; i++)
        file[i] = (uint8_t)(len >> 8 * (i - 8));
    memcpy(file + prefix, text, len);
    *ret_len = prefix + len;
    return file;
}

/* Of an exact copy, so that a read beyond the end is seen. Every shorter file must end too early. */
static int parse(unsigned version, const char *text, size_t text_len, struct ckpt_npy *ret)
{
    size_t len;
    uint8_t *file = file_of(version, text, text_len, &len);
    struct ckpt_err err = {0};
    int r = ckpt_npy_parse(file, len, ret, &err);
    CHECK(r <= 0 && (r == 0 || (err.code == -r && *err.text)));
    for (size_t n = 0; n < len && r == 0; n++) {
        uint8_t *part = malloc(n + 1);
        memcpy(part, file, n);
        part = realloc(part, n ? n : 1);
        CHECK(ckpt_npy_parse(part, n, ret, NULL) == -EBADMSG);
        free(part);
    }
    free(file);
    return r;
}

static struct ckpt_npy parsed(const char *text)
{
    struct ckpt_npy npy;
    int r = parse(0x100, text, strlen(text), &npy);
    if (r < 0)
        fprintf(stderr, "%s: %s\n", text, strerror(-r));
    CHECK(r == 0);
    return npy;
}

static int refused(const char *text)
{
    struct ckpt_npy npy;
    return parse(0x100, text, strlen(text), &npy);
}

#define WITH_DESCR(descr) "{'descr': " descr ", 'fortran_order': False, 'shape': (2, 3), }"
#define WITH_SHAPE(shape) "{'descr': '<i2', 'fortran_order': True, 'shape': " shape "}"

static void test_spellings(void)
{
    struct ckpt_npy a = parsed("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }          \n");
    CHECK(a.dtype == CKPT_DT_F32 && a.itemsize == 4 && !a.big_endian && !a.fortran && a.header == 80);
    CHECK(a.ndim == 2 && a.shape[0] == 2 && a.shape[1] == 3 && a.nbytes == 24);
    CHECK_STR(a.descr, "<f4");
    a = parsed(" \t{\n\"shape\":(2,3,)\r,'fortran_order' :True,'\\x64esc\\u0072' : '>f8'}");
    CHECK(a.dtype == CKPT_DT_F64 && a.big_endian && a.fortran && a.nbytes == 48);
    CHECK_STR(a.descr, ">f8");
    a = parsed(WITH_SHAPE("()"));
    CHECK(a.ndim == 0 && a.nbytes == 2);
    a = parsed(WITH_SHAPE("(3L , )"));
    CHECK(a.ndim == 1 && a.shape[0] == 3);
    a = parsed(WITH_SHAPE("(0, 1000000000000000000)"));
    CHECK(a.ndim == 2 && a.nbytes == 0);
    a = parsed(WITH_SHAPE("(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1)"));
    CHECK(a.ndim == 32);
    const char text[] = WITH_SHAPE("(3L,)"), plain[] = WITH_SHAPE("(3,)");
    CHECK(parse(0x300, text, strlen(text), &a) == -EUCLEAN && parse(0x200, text, strlen(text), &a) == 0 &&
          a.header == 12 + strlen(text));
    CHECK(parse(0x300, plain, strlen(plain), &a) == 0);
    CHECK(parse(0x301, plain, strlen(plain), &a) == -EOPNOTSUPP &&
          parse(0x900, plain, strlen(plain), &a) == -EOPNOTSUPP);
    CHECK(parse(0x101, plain, strlen(plain), &a) == -EUCLEAN && parse(0, plain, strlen(plain), &a) == -EUCLEAN);
    CHECK(ckpt_npy_parse(NULL, 0, &a, NULL) == -EBADMSG &&
          ckpt_npy_parse((const uint8_t *)"PK", 2, &a, NULL) == -EUCLEAN);
    CHECK(ckpt_npy_parse((const uint8_t *)"\x93NUMPY\2\0\xff\xff\xff\xff", 12, &a, NULL) == -EOPNOTSUPP);
}

static void test_types(void)
{
    static const struct {
        const char *text, *descr;
        enum ckpt_dtype dtype;
        unsigned size;
        bool big;
    } types[] = {
        {"'|b1'", "|b1", CKPT_DT_BOOL, 1, false},
        {"'?'", "|b1", CKPT_DT_BOOL, 1, false},
        {"'float64'", "<f8", CKPT_DT_F64, 8, false},
        {"'=i4'", "<i4", CKPT_DT_I32, 4, false},
        {"'u8'", "<u8", CKPT_DT_U64, 8, false},
        {"'>u1'", "|u1", CKPT_DT_U8, 1, false},
        {"'>c16'", ">c16", CKPT_DT_C128, 16, true},
        {"'<f16'", "<f16", CKPT_DT_OTHER, 16, false},
        {"'<c32'", "<c32", CKPT_DT_OTHER, 32, false},
        {"'<V2'", "<V2", CKPT_DT_OTHER, 2, false}, /* bfloat16, if the caller says so */
        {"'>V2'", ">V2", CKPT_DT_OTHER, 2, true},
        {"'|V3'", "|V3", CKPT_DT_OTHER, 3, false},
        {"'V3'", "|V3", CKPT_DT_OTHER, 3, false},
        {"'S5'", "|S5", CKPT_DT_OTHER, 5, false},
        {"'<U10'", "<U10", CKPT_DT_OTHER, 40, false},
        {"'>U10'", ">U10", CKPT_DT_OTHER, 40, true},
        {"'<U0'", "<U0", CKPT_DT_OTHER, 0, false},
        {"'<M8[ns]'", "<M8[ns]", CKPT_DT_OTHER, 8, false},
        {"'>m8[25us]'", ">m8[25us]", CKPT_DT_OTHER, 8, true},
        {"'M8'", "<M8", CKPT_DT_OTHER, 8, false},
        {"'|V2147483647'", "|V2147483647", CKPT_DT_OTHER, 2147483647, false},
        {"[]", "[]", CKPT_DT_OTHER, 0, false},
        {"[('a','<i4'),(\"b\",'>f8',(2,)),]", "[('a', '<i4'), ('b', '>f8', (2,))]", CKPT_DT_OTHER, 20, false},
        {"[('a', [('x', 'u1', (2, 0)), ('', '|V3'), ('', '|V1')], (2, 3))]",
         "[('a', [('x', '|u1', (2, 0)), ('', '|V3'), ('', '|V1')], (2, 3))]", CKPT_DT_OTHER, 24, false},
        {"[(('t','n'),('<f4',(3,)))]", "[(('t', 'n'), ('<f4', (3,)))]", CKPT_DT_OTHER, 12, false},
        {"[('\\'', '|S1'), (\"'\\\"\", '|S1'), ('\\x09\\x01\xe9\\u65e5', '|S1')]",
         "[(\"'\", '|S1'), ('\\'\"', '|S1'), ('\\t\\x01\u00e9\u65e5', '|S1')]", CKPT_DT_OTHER, 3, false},
        {"[[('a','|S1')]][0]", NULL, 0, 0, false},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        char text[600];
        snprintf(text, sizeof text, "{'descr': %s, 'fortran_order': False, 'shape': (2, 3), }", types[i].text);
        if (!types[i].descr) {
            CHECK(refused(text) == -EUCLEAN);
            continue;
        }
        struct ckpt_npy a = parsed(text), b;
        CHECK_STR(a.descr, types[i].descr);
        CHECK(a.dtype == types[i].dtype && a.itemsize == types[i].size && a.big_endian == types[i].big);
        CHECK(a.nbytes == 6ull * a.itemsize);
        char kind = a.descr[1];
        unsigned word = a.dtype != CKPT_DT_OTHER ? ckpt_dtype_info(a.dtype)->swap
                        : kind == 'U'            ? 4
                        : kind == 'c'            ? a.itemsize / 2
                                                 : a.itemsize;
        CHECK(a.word == (*a.descr != '[' && strchr("biufcUMm", kind) ? word : 1));
        /* What is written of it is read as the same. */
        CHECK(ckpt_npy_parse_descr(a.descr, &b, NULL) == 0 && b.dtype == a.dtype && b.itemsize == a.itemsize &&
              b.big_endian == a.big_endian);
        CHECK_STR(b.descr, a.descr);
        struct ckpt_buf buf = CKPT_BUF_INIT;
        ckpt_npy_add_header(&buf, a.descr, a.ndim, a.shape);
        CHECK(ckpt_npy_parse(buf.data, buf.len, &b, NULL) == 0 && b.header == buf.len && buf.len % 64 == 0);
        CHECK_STR(b.descr, a.descr);
        CHECK(buf.data[6] == (strstr(a.descr, "\u65e5") ? 3 : 1));
        ckpt_buf_clear(&buf);
    }
}

static void test_refused(void)
{
    static const char *const malformed[] = {
        "",
        "{",
        "{}",
        "('<f4', False, (6,))",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} x",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'x': 1}",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4' 'fortran_order': False, 'shape': (2,)}",
        "{'descr' '<f4', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': 0, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': false, 'shape': (2,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)} # ",
        "{,'descr': '<f4', 'fortran_order': False, 'shape': (2,)}",
        WITH_SHAPE("[2]"),
        WITH_SHAPE("2"),
        WITH_SHAPE("(2)"),
        WITH_SHAPE("(,)"),
        WITH_SHAPE("(2,,)"),
        WITH_SHAPE("(2 3)"),
        WITH_SHAPE("(-2,)"),
        WITH_SHAPE("(2.0,)"),
        WITH_SHAPE("(True,)"),
        WITH_SHAPE("(1+1,)"),
        WITH_SHAPE("(0x2,)"),
        WITH_SHAPE("(02,)"),
        WITH_SHAPE("(1_0,)"),
        WITH_SHAPE("(18446744073709551616,)"),
        WITH_SHAPE("(9223372036854775808,)"),
        WITH_SHAPE("(4611686018427387904, 4)"),
        WITH_SHAPE("(0, 4611686018427387904)"),
        WITH_SHAPE("(2,"),
        WITH_SHAPE("(2L L,)"),
        WITH_DESCR("5"),
        WITH_DESCR("'<q9'"),
        WITH_DESCR("'<f3'"),
        WITH_DESCR("'<f'"),
        WITH_DESCR("''"),
        WITH_DESCR("'<'"),
        WITH_DESCR("'<<f4'"),
        WITH_DESCR("'<f4 '"),
        WITH_DESCR("'|V2147483648'"),
        WITH_DESCR("'|S99999999999999999999'"),
        WITH_DESCR("'<U536870912'"),
        WITH_DESCR("'V'"),
        WITH_DESCR("'bfloat16'"),
        WITH_DESCR("'int4'"),
        WITH_DESCR("'<M8[xx]'"),
        WITH_DESCR("'<M8[ns'"),
        WITH_DESCR("'<M4[ns]'"),
        WITH_DESCR("'<f4\\q'"),
        WITH_DESCR("'<f4\\x0'"),
        WITH_DESCR("'<f4"),
        WITH_DESCR("u'<f4'"),
        WITH_DESCR("'<f' '4'"),
        WITH_DESCR("('<f4', (2,))"),
        WITH_DESCR("[('a',)]"),
        WITH_DESCR("[('a' '<f4')]"),
        WITH_DESCR("['a']"),
        WITH_DESCR("[('a','<f4')"),
        WITH_DESCR("[('a','<f4') ('b','<f4')]"),
        WITH_DESCR("[('a','<f4',2)]"),
        WITH_DESCR("[('a','<f4',(2,),3)]"),
        WITH_DESCR("[('a','<f4'),('a','<i4')]"),
        WITH_DESCR("[('\\ud800','<f4')]"),
        WITH_DESCR("[('\\x00','<f4')]"),
        WITH_DESCR("[('a','<f8',(4294967296,4294967296))]"),
        WITH_DESCR("[('a','|V2147483647'),('b','|V1')]"),
        WITH_DESCR("[(('a','b','c'),'<f4')]"),
        WITH_DESCR("[('a\n','<f4')]"),
        WITH_DESCR("[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('a',[('"
                   "a','|S1')])])])])])])])])])])])])])])])])]"),
    };
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++)
        if (refused(malformed[i]) != -EUCLEAN) {
            fprintf(stderr, "%s: %d\n", malformed[i], refused(malformed[i]));
            exit(1);
        }
    CHECK(refused(WITH_DESCR("'|O'")) == -EOPNOTSUPP && refused(WITH_DESCR("[('a', 'O')]")) == -EOPNOTSUPP);
    CHECK(refused(WITH_SHAPE("(1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1)")) == -EOPNOTSUPP);
    struct ckpt_npy a;
    static const char nul[] = WITH_SHAPE("(2,)") "\0\n", utf8[] = WITH_DESCR("[('\xe9', '<f4')]"),
                      cut[] = WITH_DESCR("[('\xe6\x97', '<f4')]");
    CHECK(parse(0x100, nul, sizeof nul - 1, &a) == -EUCLEAN);
    CHECK(parse(0x300, utf8, strlen(utf8), &a) == -EUCLEAN && parse(0x300, cut, strlen(cut), &a) == -EUCLEAN &&
          parse(0x100, cut, strlen(cut), &a) == 0);
}

/* What goes beyond the maxima, and brackets without end. */
static void test_large(void)
{
    static char text[1 << 20];
    struct ckpt_npy a;
    size_t n = (size_t)snprintf(text, sizeof text, "{'fortran_order': False, 'shape': (2,), 'descr': [('");
    memset(text + n, 'x', 600);
    strcpy(text + n + 600, "', '<f4')]}");
    CHECK(refused(text) == -EOPNOTSUPP);
    strcpy(text + n + 490, "', '<f4')]}");
    CHECK(refused(text) == 0);
    size_t len;
    memset(text, ' ', sizeof text);
    memcpy(text, WITH_SHAPE("(2,)"), strlen(WITH_SHAPE("(2,)")));
    uint8_t *file = file_of(0x200, text, sizeof text, &len);
    CHECK(ckpt_npy_parse(file, len, &a, NULL) == 0 && a.header == len);
    file[10]++; /* 64 KiB more */
    CHECK(ckpt_npy_parse(file, len, &a, NULL) == -EOPNOTSUPP);
    free(file);
    static const char *const openings[] = {"{'descr': [('a',", "{'descr': (", "{'descr': [(", "{", "{'shape': ("};
    for (size_t i = 0; i < sizeof openings / sizeof *openings; i++) {
        strcpy(text, openings[i]);
        n = strlen(text);
        for (size_t at = n; at < 60000; at++)
            text[at] = i == 0 ? "[('a',"[(at - n) % 6] : "([{"[at % 3];
        file = file_of(0x100, text, 60000, &len);
        CHECK(ckpt_npy_parse(file, len, &a, NULL) == -EUCLEAN);
        free(file);
    }
}

int main(void)
{
    check_header("{'descr': '<f4', 'fortran_order': False, 'shape': (), }", 128, "<f4", 0, NULL);
    check_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", 128, "<f4", 1, (uint64_t[]){3});
    check_header("{'descr': '<V2', 'fortran_order': False, 'shape': (2, 3), }", 128, "<V2", 2, (uint64_t[]){2, 3});
    check_header("{'descr': '|i1', 'fortran_order': False, 'shape': (1000000000000000000, 0), }", 128, "|i1", 2,
                 (uint64_t[]){1000000000000000000, 0});
    check_header("{'descr': '<f4', 'fortran_order': False, 'shape': ("
                 "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, "
                 "1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), }",
                 192, "<f4", 32, (uint64_t[]){1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                              1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1});
    check_header("{'descr': [('a', '<i4'), ('b', '<f8', (2,))], 'fortran_order': False, 'shape': (5,), }", 128,
                 "[('a', '<i4'), ('b', '<f8', (2,))]", 1, (uint64_t[]){5});
    check_long();
    test_spellings();
    test_types();
    test_refused();
    test_large();
    return 0;
}
