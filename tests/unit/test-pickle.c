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
    TEXT("cos\nsystem\n.", "\"os.system\"", "os.system");
    TEXT("I01\n.", "true", "True");
    TEXT("I00\n.", "false", "False");
    TEXT("I-12\n.", "-12", "-12");
    TEXT("L0L\n.", "0", "0");
    TEXT("L-18446744073709551616L\n.", "-18446744073709551616", NULL);
    TEXT("L123456789012345678901234567890L\n.", "123456789012345678901234567890", NULL);
    TEXT("F-0.5\n.", "-0.5", "-0.5");
    TEXT("Finf\n.", "Infinity", "inf");
    TEXT("S'a\\x41\\n\\'\\\\\\101\\q'\n.", "\"aA\\n'\\\\A\\\\q\"", NULL);
    TEXT("V\\u00e9\xe9\\U0001f600\\ud83d\\ude00\\x\n.", "\"\xc3\xa9\xc3\xa9\xf0\x9f\x98\x80\xf0\x9f\x98\x80\\\\x\"",
         NULL);
    TEXT("\x8d\2\0\0\0\0\0\0\0ab.", "\"ab\"", "ab");
    TEXT("T\2\0\0\0ab.", "\"ab\"", "ab");
    TEXT("\x8b\2\0\0\0\0\1.", "256", "256");
    TEXT("K\1(K\2K\0031.", "1", "1"); /* POP_MARK */
    TEXT("K\1(0.", "1", "1");
    TEXT("K\1K\0020.", "1", "1");
    TEXT("K\0012\x86.", NULL, "(1, 1)");
    TEXT("K\7p12\n0g12\n.", "7", "7");
    TEXT("\x8f(K\1K\2\x90.", "[1, 2]", NULL);
    TEXT("(K\1\x91.", "[1]", NULL);
    TEXT("C\3a\xff'.", NULL, "b'a\\xff\\''");
    TEXT("U\1\xff.", NULL, "b'\\xff'"); /* of Python 2 */
    TEXT("cpathlib\nPosixPath\n(X\1\0\0\0/X\1\0\0\0aX\1\0\0\0btR.", "\"/a/b\"", "/a/b");
    TEXT("cpathlib\nPureWindowsPath\n(X\3\0\0\0c:\\X\1\0\0\0atR.", "\"c:\\\\a\"", NULL);
    TEXT("cdatetime\ndate\nC\4\x07\xe8\1\2\x85R.", "\"2024-01-02\"", "2024-01-02");
    TEXT("cdatetime\ntime\nC\6\x17\x3b\x3b\0\0\1\x85R.", "\"23:59:59.000001\"", NULL);
    TEXT("cdatetime\ntimedelta\nJ\xff\xff\xff\xffK\5K\0\x87R.", "\"-1 day, 0:00:05\"", NULL);
    TEXT("cbuiltins\nrange\nK\0K\3K\1\x87R.", "\"range(0, 3)\"", NULL);
    TEXT("cbuiltins\nslice\nNK\3N\x87R.", "\"slice(None, 3, None)\"", NULL);
    TEXT("cbuiltins\ngetattr\nca\nB\nX\1\0\0\0c\x86R.", "\"a.B.c\"", NULL);
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
        CASE("\x80\6N.", EOPNOTSUPP, "protocol 6"),
        CASE("cos\nsystem", EUCLEAN, "no end"),
        CASE("X\5\0\0\0abc", EBADMSG, "BINUNICODE"),
        CASE("X\xff\xff\xff\xff", EBADMSG, "BINUNICODE"),
        CASE("\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", EBADMSG, "BINUNICODE8"),
        CASE("\x8b\xff\xff\xff\xff.", EUCLEAN, "LONG4"),
        CASE("T\xff\xff\xff\xff.", EUCLEAN, "BINSTRING"),
        CASE("\x82\1.", EOPNOTSUPP, "EXT1"),
        CASE("\x83\1\0.", EOPNOTSUPP, "EXT2"),
        CASE("\x84\1\0\0\0.", EOPNOTSUPP, "registry"),
        CASE("0.", EUCLEAN, "empty"),
        CASE("2.", EUCLEAN, "empty"),
        CASE("1.", EUCLEAN, "mark"),
        CASE("\xff", EUCLEAN, "0xff"),
        CASE("X\1\0\0\0\xff.", EUCLEAN, "UTF-8"),
        CASE("V\\ud800\n.", EUCLEAN, "UTF-8"),
        CASE("V\\u12\n.", EUCLEAN, "escape"),
        CASE("S'\\x1'\n.", EUCLEAN, "escape"),
        CASE("S'a\n.", EUCLEAN, "quotes"),
        CASE("S'a", EBADMSG, "STRING"),
        CASE("I1x\n.", EUCLEAN, "digit"),
        CASE("L\n.", EUCLEAN, "integer"),
        CASE("F1.5x\n.", EUCLEAN, "number"),
        CASE("Np99999999999\n.", EUCLEAN, "memo"),
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
        CASE("](N\x90.", EUCLEAN, "no set"),
        CASE("}(Nu.", EUCLEAN, "no value"),
        CASE("}]Ns.", EUCLEAN, "key"),
        CASE("}((]ttNs.", EUCLEAN, "key"),
        CASE("(Nd.", EUCLEAN, "no value"),
        CASE("N)R.", EUCLEAN, "no name"),
        CASE("})R.", EUCLEAN, "no name"),
        CASE("cos\nsystem\nNR.", EUCLEAN, "arguments"),
        CASE("cos\nsystem\n)N\x92.", EUCLEAN, "no dict"),
        CASE("(o.", EUCLEAN, "no class"),
        CASE("N}b.", EUCLEAN, "BUILD"),
        CASE("NQ.", EUCLEAN, "persistent"),
        CASE("Pabc\n.", EUCLEAN, "persistent"),
        CASE("\x98.", EUCLEAN, "empty"),
        CASE("X\1\0\0\0aN\x93.", EUCLEAN, "no string"),
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

/* What is called is written down: its name, and what it was called with and given. -1: there is none. */
static void check_object(const char *pickle, size_t len, const char *class, int args, int items, int entries,
                         enum torch_kind state)
{
    struct loaded l;
    struct ckpt_buf name = CKPT_BUF_INIT;
    CHECK(load(&l, TORCH_SAVE, pickle, len) == 0);
    CHECK(ckpt_torch_kind(&l.g, l.g.top) == TORCH_OBJECT);
    ckpt_torch_add_class(&l.g, ckpt_torch_class(&l.g, l.g.top), &name);
    CKPT_AUTOFREE char *text = ckpt_buf_steal(&name, NULL);
    CHECK_STR(text, class);
    torch_value parts[] = {ckpt_torch_args(&l.g, l.g.top), ckpt_torch_part(&l.g, l.g.top, TORCH_ITEMS),
                           ckpt_torch_part(&l.g, l.g.top, TORCH_ENTRIES)};
    int counts[] = {args, items, entries};
    for (int i = 0; i < 3; i++)
        CHECK(parts[i] == TORCH_NOTHING ? counts[i] == -1 : (int)ckpt_torch_count(&l.g, parts[i]) == counts[i]);
    torch_value own = ckpt_torch_state(&l.g, l.g.top);
    CHECK(own == TORCH_NOTHING ? state == TORCH_NONE : ckpt_torch_kind(&l.g, own) == state);
    clear(&l);
}

#define OBJECT(pickle, class, args, items, entries, state)                                                             \
    check_object(pickle, sizeof pickle - 1, class, args, items, entries, state)

static void test_objects(void)
{
    OBJECT("cos\nsystem\n(VX\ntR.", "os.system", 1, -1, -1, TORCH_NONE);
    OBJECT("(VX\nios\nsystem\n.", "os.system", 1, -1, -1, TORCH_NONE);
    OBJECT("(cos\nsystem\nVX\nNo.", "os.system", 2, -1, -1, TORCH_NONE);
    OBJECT("\x8c\2os\x8c\6system\x93)\x81.", "os.system", 0, -1, -1, TORCH_NONE);
    OBJECT("ca\nb.c\n)}X\1\0\0\0kK\1s\x92.", "a.b.c", 0, -1, -1, TORCH_NONE);
    OBJECT("ca\nb\n)\x81}X\1\0\0\0kK\1sb.", "a.b", 0, -1, -1, TORCH_DICT);
    OBJECT("ca\nb\n)\x81(K\1K\2eX\1\0\0\0kK\1s.", "a.b", 0, 2, 1, TORCH_NONE);
    OBJECT("ca\nb\n)\x81NbK\1b.", "a.b", 0, -1, -1, TORCH_TUPLE); /* both of two states */
    OBJECT("ccopyreg\n_reconstructor\n(ca\nb\nc__builtin__\nobject\nNtR.", "a.b", -1, -1, -1, TORCH_NONE);
    OBJECT("ccopy_reg\n_reconstructor\n(ca\nb\nc__builtin__\nint\nK\7tR.", "a.b", 1, -1, -1, TORCH_NONE);
    OBJECT("ccopyreg\n__newobj__\n(ca\nb\nK\1K\2tR.", "a.b", 2, -1, -1, TORCH_NONE);
    OBJECT("ccopyreg\n__newobj_ex__\n(ca\nb\n(K\1t}tR.", "a.b", 1, -1, -1, TORCH_NONE);
    OBJECT("cbuiltins\ngetattr\n(ca\nb\nX\1\0\0\0ctR)R.", "a.b.c", 0, -1, -1, TORCH_NONE);
    OBJECT("cbuiltins\ngetattr\n(K\1X\1\0\0\0ctR.", "builtins.getattr", 2, -1, -1, TORCH_NONE);
    OBJECT("ca\nb\n)R)R.", "?", 0, -1, -1, TORCH_NONE);
    OBJECT("ctorch\nfloat32\n)R.", "torch.float32", 0, -1, -1, TORCH_NONE);
    OBJECT("c__builtin__\nbytearray\nK\1\x85R.", "builtins.bytearray", 1, -1, -1, TORCH_NONE);
    OBJECT("c_codecs\nencode\nX\1\0\0\0aX\4\0\0\0zlib\x86R.", "_codecs.encode", 2, -1, -1, TORCH_NONE);
    OBJECT("ctorch._utils\n_rebuild_tensor_v2\nN\x85R.", "torch._utils._rebuild_tensor_v2", 1, -1, -1, TORCH_NONE);
}

/* Containers of Python's library are those that they are like. */
static void test_containers(void)
{
    static const struct {
        const char *pickle;
        size_t len;
        enum torch_kind kind;
        uint32_t count;
    } cases[] = {
#define CASE(pickle, kind, count) {pickle, sizeof pickle - 1, kind, count}
        CASE("(K\1K\2l.", TORCH_LIST, 2),
        CASE("(K\1K\2d.", TORCH_DICT, 1),
        CASE("ccollections\ndefaultdict\n(c__builtin__\nlist\ntRK\1]s.", TORCH_DICT, 1),
        CASE("ccollections\nCounter\n(}K\1K\2stR.", TORCH_DICT, 1),
        CASE("ccollections\nOrderedDict\n](K\1K\2\x86K\1K\2\x86"
             "e\x85R.",
             TORCH_DICT, 2),
        CASE("ccollections\nOrderedDict\n]](K\1K\2ea\x85R.", TORCH_DICT, 1),
        CASE("ccollections\ndeque\n)RK\1a.", TORCH_LIST, 1),
        CASE("ccollections\ndeque\n)K\5\x86RK\1a.", TORCH_LIST, 1),
        CASE("ctorch.jit._pickle\nbuild_intlist\n](K\1K\2e\x85R.", TORCH_LIST, 2),
#undef CASE
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct loaded l;
        CHECK(load(&l, TORCH_SAVE, cases[i].pickle, cases[i].len) == 0);
        CHECK(ckpt_torch_kind(&l.g, l.g.top) == cases[i].kind && ckpt_torch_count(&l.g, l.g.top) == cases[i].count);
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
    CHECK(ckpt_torch_kind(&l.g, l.g.top) == TORCH_OBJECT &&
          ckpt_torch_get(&l.g, ckpt_torch_state(&l.g, l.g.top), "k") != TORCH_NOTHING);
    clear(&l);
    CHECK(LOAD(&l, TORCH_META, "NQ.") == -EUCLEAN);
    clear(&l);
}

int main(void)
{
    test_values();
    test_wide_int();
    test_refused();
    test_objects();
    test_containers();
    test_tensor();
    test_given_back();
    test_kept();
    test_changed_set();
    test_faults();
    test_metadata();
    return 0;
}
