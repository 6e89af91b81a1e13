/* SPDX-License-Identifier: Apache-2.0 */
/* The pickle machine: what opcodes make, what is refused, and that what a tensor is made of is given back but never
 * what is still needed. */
#include "core/format/pytorch/pickle.h"

#include "core/base/util.h"
#include "core/format/pytorch/opcode.h"
#include "core/format/pytorch/record.h"
#include "core/format/pytorch/text.h"
#include "tests/unit/check.h"

struct loaded {
    struct torch_graph g;
    struct ckpt_buf records;
    struct ckpt_err err;
};

static int load(struct loaded *l, enum torch_dialect dialect, const void *pickle, size_t len)
{
    *l = (struct loaded){0};
    uint8_t *copy = malloc(len + 1);
    memcpy(copy, pickle, len);
    int r = ckpt_torch_pickle_load(copy, len, dialect, &l->records, 0, &l->g, &l->err);
    CHECK(r == -l->err.code && (r == 0) == !*l->err.text);
    return r;
}

static void clear(struct loaded *l)
{
    ckpt_torch_graph_clear(&l->g);
    ckpt_buf_clear(&l->records);
}

#define LOAD(l, dialect, text) load(l, dialect, text, sizeof text - 1)

/* The only object as JSON, or as str(). */
static void check_text(const char *pickle, size_t len, const char *json, const char *str)
{
    struct loaded l;
    struct ckpt_buf buf = CKPT_BUF_INIT;
    CHECK(load(&l, TORCH_SAVE, pickle, len) == 0);
    if (json) {
        CHECK(ckpt_torch_add_json(&l.g, l.g.top, &buf));
        CKPT_AUTOFREE char *text = ckpt_buf_steal(&buf, NULL);
        CHECK_STR(text, json);
    }
    ckpt_torch_add_str(&l.g, l.g.top, &buf);
    CKPT_AUTOFREE char *text = ckpt_buf_steal(&buf, NULL);
    if (str)
        CHECK_STR(text, str);
    clear(&l);
}

#define TEXT(pickle, json, str) check_text(pickle, sizeof pickle - 1, json, str)

static void test_values(void)
{
    TEXT("\x80\x02N.", "null", "None");
    TEXT("\x88.", "true", "True");
    TEXT("\x89.", "false", "False");
    TEXT("K\xff.", "255", "255");
    TEXT("M\xff\xff.", "65535", "65535");
    TEXT("J\xff\xff\xff\xff.", "-1", "-1");
    TEXT("\x8a\0.", "0", "0");
    TEXT("\x8a\1\x80.", "-128", "-128");
    TEXT("\x8a\2\x80\0.", "128", "128");
    TEXT("\x8a\x08\0\0\0\0\0\0\0\x80.", "-9223372036854775808", NULL);
    TEXT("\x8a\x09\0\0\0\0\0\0\0\x80\0.", "9223372036854775808", NULL);
    TEXT("\x8a\x09\0\0\0\0\0\0\0\x80\xff.", "-9223372036854775808", NULL); /* longer than need be */
    TEXT("\x8a\x09\0\0\0\0\0\0\0\0\1.", "18446744073709551616", NULL);
    TEXT("\x8a\x0a\0\0\0\0\0\0\0\0\0\xff.", "-4722366482869645213696", NULL);
    TEXT("G\x3f\xb9\x99\x99\x99\x99\x99\x9a.", "0.1", "0.1");
    TEXT("G\x7f\xf0\0\0\0\0\0\0.", "Infinity", "inf");
    TEXT("X\5\0\0\0a\"\n\xc3\xa9.", "\"a\\\"\\n\xc3\xa9\"", "a\"\n\xc3\xa9");
    TEXT("U\2ab.", "\"ab\"", "ab");
    TEXT("(K\1X\2\0\0\0'\nX\1\0\0\0\"N)t.", NULL, "(1, \"'\\n\", '\"', None, ())");
    TEXT("K\1\x85.", NULL, "(1,)");
    TEXT("ctorch\nSize\nK\2K\3\x86\x85R.", "[2, 3]", NULL);
    TEXT("ctorch\ndevice\nX\4\0\0\0cudaK\1\x86R.", "\"cuda:1\"", NULL);
    TEXT("ctorch\nbfloat16\n.", "\"torch.bfloat16\"", NULL);
    TEXT("c__builtin__\nset\n](K\1K\2\x85"
         "e\x85R.",
         "[1, [2]]", NULL);
    TEXT("\x8f.", "[]", NULL);
}

static void test_wide_int(void)
{
    struct ckpt_buf pickle = CKPT_BUF_INIT, text = CKPT_BUF_INIT;
    struct loaded l;
    ckpt_buf_add(&pickle, "\x8a\xff", 2);
    for (int i = 0; i < 254; i++)
        ckpt_buf_addc(&pickle, 0);
    ckpt_buf_add(&pickle, "\x80.", 2); /* -2**2039 */
    CHECK(load(&l, TORCH_SAVE, pickle.data, pickle.len) == 0);
    ckpt_torch_int_text(&l.g, l.g.top, &text);
    CHECK(text.len == 615 && !memcmp(text.data, "-6311", 5));
    CHECK((text.data[614] - '0') % 2 == 0);
    ckpt_buf_clear(&pickle);
    ckpt_buf_clear(&text);
    clear(&l);
}

static void test_refused(void)
{
    static const struct {
        const char *pickle;
        size_t len;
        int code;
        const char *says;
    } cases[] = {
#define CASE(pickle, code, says) {pickle, sizeof pickle - 1, code, says}
        CASE("", EBADMSG, "STOP"),
        CASE("N", EBADMSG, "STOP"),
        CASE("\x80\4N.", EOPNOTSUPP, "protocol 4"),
        CASE("cos\nsystem\n.", EOPNOTSUPP, "os.system"),
        CASE("cos\n\x1b[2J\n.", EOPNOTSUPP, "os.\\u001b[2J"),
        CASE("ctorch.distributed.checkpoint.metadata\nMetadata\n.", EOPNOTSUPP, "Metadata"),
        CASE("cos\nsystem", EUCLEAN, "no end"),
        CASE("X\5\0\0\0abc", EBADMSG, "BINUNICODE"),
        CASE("X\xff\xff\xff\xff", EBADMSG, "BINUNICODE"),
        CASE("\x8c\1a.", EOPNOTSUPP, "SHORT_BINUNICODE"),
        CASE("\x93.", EOPNOTSUPP, "STACK_GLOBAL"),
        CASE("N0.", EOPNOTSUPP, "POP"),
        CASE("\xff", EUCLEAN, "0xff"),
        CASE("X\1\0\0\0\xff.", EUCLEAN, "UTF-8"),
        CASE(".", EUCLEAN, "one object"),
        CASE("NN.", EUCLEAN, "one object"),
        CASE("(N.", EUCLEAN, "one object"),
        CASE("h\0.", EUCLEAN, "memo"),
        CASE("q\0N.", EUCLEAN, "empty"),
        CASE("N\x86.", EUCLEAN, "empty"),
        CASE("N(N\x86.", EUCLEAN, "empty"), /* not beyond a mark */
        CASE("t.", EUCLEAN, "mark"),
        CASE("Ne.", EUCLEAN, "mark"),
        CASE("(Ne.", EUCLEAN, "empty"),
        CASE("}Na.", EUCLEAN, "no list"),
        CASE("]NNs.", EUCLEAN, "no dict"),
        CASE("}(Nu.", EUCLEAN, "no value"),
        CASE("}]Ns.", EUCLEAN, "key"),
        CASE("}((]ttNs.", EUCLEAN, "key"),
        CASE("N)R.", EUCLEAN, "no name"),
        CASE("ctorch\nfloat32\n)R.", EUCLEAN, "torch.float32"),
        CASE("ctorch\nFloatStorage\nK\1\x85R.", EUCLEAN, "torch.FloatStorage"),
        CASE("c__builtin__\nbytearray\nK\1\x85R.", EUCLEAN, "bytearray"),
        CASE("c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0zlib\x86R.", EUCLEAN, "encode"),
        CASE("c_codecs\nencode\nX\3\0\0\0\xe2\x82\xacX\6\0\0\0latin1\x86R.", EUCLEAN, "encode"),
        CASE("}}b.", EUCLEAN, "BUILD"),
        CASE("NQ.", EUCLEAN, "persistent"),
#undef CASE
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct loaded l;
        CHECK(load(&l, TORCH_SAVE, cases[i].pickle, cases[i].len) == -cases[i].code);
        if (!strstr(l.err.text, cases[i].says))
            CHECK_STR(l.err.text, cases[i].says);
        clear(&l);
    }
}

#define STORAGE(key) "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" key "X\3\0\0\0cpuK\x08tQ"
#define TENSOR(key)                                                                                                    \
    "ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE(key) "K\1K\2K\3\x86K\3K\1\x86\x89"                                  \
                                                        "ccollections\nOrderedDict\n)RtR"

static void test_tensor(void)
{
    struct loaded l;
    struct torch_tensor t;
    CHECK(LOAD(&l, TORCH_SAVE, "\x80\2" TENSOR("5") ".") == 0);
    CHECK(ckpt_torch_kind(&l.g, l.g.top) == TORCH_TENSOR);
    ckpt_torch_get_tensor(&l.records, ckpt_torch_record_of(l.g.top), &t);
    CHECK(!t.fault && t.dtype == CKPT_DT_F32 && t.key == 5 && t.size == 32 && t.offset == 1 && t.ndim == 2 &&
          t.shape[0] == 2 && t.shape[1] == 3 && t.stride[0] == 3 && t.stride[1] == 1);
    CHECK(!l.g.count && l.records.len < 20);
    clear(&l);
}

/* A list of tensors takes a word each, however much they are made of. */
static void test_given_back(void)
{
    struct ckpt_buf pickle = CKPT_BUF_INIT;
    struct loaded l;
    const char tensor[] = TENSOR("5");
    ckpt_buf_adds(&pickle, "](");
    for (int i = 0; i < 1000; i++)
        ckpt_buf_add(&pickle, tensor, sizeof tensor - 1);
    ckpt_buf_adds(&pickle, "e.");
    CHECK(load(&l, TORCH_SAVE, pickle.data, pickle.len) == 0);
    CHECK(ckpt_torch_count(&l.g, l.g.top) == 1000 && l.g.count < 1010);
    ckpt_buf_clear(&pickle);
    clear(&l);
}

/* What is fetched from the memo, or was put into a container, outlives the tensor in whose making it was made. */
static void test_kept(void)
{
    struct loaded l;
    struct torch_walk w;
    torch_value v;
    /* [tensor whose size is memoised, that size, a list that was filled while another tensor was made, that tensor] */
    CHECK(LOAD(&l, TORCH_SAVE,
               "](ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("1") "K\0K\2K\3\x86q\1K\3K\1\x86\x89"
                                                                     "ccollections\nOrderedDict\n)RtRh\1"
                                                                     "]q\2ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE(
                                                                         "2") "K\0)q\4)\x89"
                                                                              "h\2(K\7K\x08\x85"
                                                                              "etRK\x63K\x62\x86"
                                                                              "e.") == 0);
    CHECK(ckpt_torch_count(&l.g, l.g.top) == 5);
    ckpt_torch_walk_init(&w, &l.g, l.g.top);
    CHECK(ckpt_torch_walk_next(&w, &v) && ckpt_torch_kind(&l.g, v) == TORCH_TENSOR);
    CHECK(ckpt_torch_walk_next(&w, &v) && ckpt_torch_kind(&l.g, v) == TORCH_TUPLE && ckpt_torch_count(&l.g, v) == 2);
    int64_t n;
    CHECK(ckpt_torch_int(&l.g, ckpt_torch_item(&l.g, v, 0), &n) && n == 2 &&
          ckpt_torch_int(&l.g, ckpt_torch_item(&l.g, v, 1), &n) && n == 3);
    CHECK(ckpt_torch_walk_next(&w, &v) && ckpt_torch_kind(&l.g, v) == TORCH_LIST && ckpt_torch_count(&l.g, v) == 2);
    struct torch_walk in;
    torch_value item;
    ckpt_torch_walk_init(&in, &l.g, v);
    CHECK(ckpt_torch_walk_next(&in, &item) && ckpt_torch_int(&l.g, item, &n) && n == 7);
    CHECK(ckpt_torch_walk_next(&in, &item) && ckpt_torch_kind(&l.g, item) == TORCH_TUPLE &&
          ckpt_torch_int(&l.g, ckpt_torch_item(&l.g, item, 0), &n) && n == 8);
    CHECK(ckpt_torch_walk_next(&w, &v) && ckpt_torch_kind(&l.g, v) == TORCH_TENSOR);
    CHECK(ckpt_torch_walk_next(&w, &v) && ckpt_torch_int(&l.g, ckpt_torch_item(&l.g, v, 1), &n) && n == 0x62);
    clear(&l);
}

/* A list that a set was made of is changed afterwards: into what no set can hold, and deeply nested. */
static void test_changed_set(void)
{
    struct ckpt_buf pickle = CKPT_BUF_INIT, json = CKPT_BUF_INIT;
    struct loaded l;
    ckpt_buf_adds(&pickle, "cbuiltins\nset\n]q\1\x85Rh\1");
    ckpt_buf_adds(&pickle, "N");
    for (int i = 0; i < 500000; i++)
        ckpt_buf_addc(&pickle, (char)OP_TUPLE1);
    ckpt_buf_adds(&pickle, "a\x86.");
    CHECK(load(&l, TORCH_SAVE, pickle.data, pickle.len) == 0);
    torch_value set = ckpt_torch_item(&l.g, l.g.top, 0);
    CHECK(ckpt_torch_is(&l.g, set, TORCH_CALL, TORCH_IS_SET) && !ckpt_torch_add_json(&l.g, set, &json));
    ckpt_buf_clear(&pickle);
    ckpt_buf_clear(&json);
    clear(&l);
}

static void test_faults(void)
{
    static const struct {
        const char *pickle;
        size_t len;
        enum torch_fault fault;
    } cases[] = {
#define CASE(args, fault)                                                                                              \
    {"ctorch._utils\n_rebuild_tensor_v2\n(" args "\x89NtR.",                                                           \
     sizeof("ctorch._utils\n_rebuild_tensor_v2\n(" args "\x89NtR.") - 1, fault}
        CASE(STORAGE("0") "K\0K\x08\x85K\1\x85", TORCH_FINE),
        CASE(STORAGE("0") "K\1K\x08\x85K\1\x85", TORCH_OUTSIDE),
        CASE(STORAGE("0") "K\0K\x08\x85K\2\x85", TORCH_OUTSIDE),
        CASE(STORAGE("0") "K\x08)\x29", TORCH_OUTSIDE),
        CASE(STORAGE("0") "K\xffK\0\x85K\xff\x85", TORCH_FINE), /* nothing of it */
        CASE(STORAGE("0") "K\7\x8a\6\0\0\0\0\0\1\x85K\0\x85", TORCH_FINE),
        CASE(STORAGE("0") "K\0\x8a\x08\0\0\0\0\0\0\0\x7f\x8a\x08\0\0\0\0\0\0\0\x7f\x86K\1K\1\x86",
             TORCH_OUTSIDE), /* overflows */
        CASE(STORAGE("0") "K\0\x8a\x09\0\0\0\0\0\0\0\0\1\x85K\0\x85", TORCH_BAD_NUMBER),
        CASE(STORAGE("0") "J\xff\xff\xff\xff)\x29", TORCH_BAD_NUMBER),
        CASE(STORAGE("0") "K\0K\2\x85J\xff\xff\xff\xff\x85", TORCH_BAD_NUMBER),
        CASE(STORAGE("0") "K\0K\2\x85)", TORCH_BAD_RANK),
        CASE(STORAGE("x") "K\0K\2\x85K\1\x85", TORCH_BAD_KEY),
#undef CASE
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct loaded l;
        struct torch_tensor t;
        CHECK(load(&l, TORCH_SAVE, cases[i].pickle, cases[i].len) == 0);
        ckpt_torch_get_tensor(&l.records, ckpt_torch_record_of(l.g.top), &t);
        CHECK(t.fault == cases[i].fault);
        clear(&l);
    }
}

static void test_metadata(void)
{
    struct loaded l;
    CHECK(LOAD(&l, TORCH_META, "\x80\4\x95\x0e\0\0\0\0\0\0\0\x8c\1a\x94\x8c\1b\x94h\0h\1\x86\x86\x86.") ==
          0); /* MEMOIZE counts from 0 */
    CHECK(ckpt_torch_str_is(&l.g, ckpt_torch_item(&l.g, l.g.top, 0), "a"));
    torch_value pair = ckpt_torch_item(&l.g, ckpt_torch_item(&l.g, l.g.top, 1), 1);
    CHECK(ckpt_torch_str_is(&l.g, ckpt_torch_item(&l.g, pair, 0), "a") &&
          ckpt_torch_str_is(&l.g, ckpt_torch_item(&l.g, pair, 1), "b"));
    clear(&l);
    CHECK(LOAD(&l, TORCH_META, "\x95\xff\0\0\0\0\0\0\0N.") == -EBADMSG);
    clear(&l);
    CHECK(LOAD(&l, TORCH_META, "ctorch.distributed.checkpoint.metadata\nMetadata\n)\x81}X\1\0\0\0kK\1sb.") == 0);
    CHECK(ckpt_torch_is(&l.g, l.g.top, TORCH_OBJECT, TORCH_IS_CLASS) &&
          ckpt_torch_get(&l.g, ckpt_torch_state(&l.g, l.g.top), "k") != TORCH_NOTHING);
    clear(&l);
    /* getattr is known for one thing only: how some versions of Python name the members of an enum */
#define ENUM "ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n"
    CHECK(LOAD(&l, TORCH_META, "cbuiltins\ngetattr\n" ENUM "X\1\0\0\0a\x86R.") == 0);
    clear(&l);
    CHECK(LOAD(&l, TORCH_META, "cbuiltins\ngetattr\nctorch\nSize\nX\1\0\0\0a\x86R.") == -EUCLEAN);
    clear(&l);
    CHECK(LOAD(&l, TORCH_META, "cos\nsystem\n.") == -EOPNOTSUPP);
    clear(&l);
    CHECK(LOAD(&l, TORCH_META, "NQ.") == -EOPNOTSUPP);
    clear(&l);
}

int main(void)
{
    test_values();
    test_wide_int();
    test_refused();
    test_tensor();
    test_given_back();
    test_kept();
    test_changed_set();
    test_faults();
    test_metadata();
    return 0;
}
