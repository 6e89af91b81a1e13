/* SPDX-License-Identifier: Apache-2.0 */
#include "core/array/dtype.h"

#include "core/array/digits.h"
#include "core/base/util.h"
#include "tests/unit/check.h"

#include <locale.h>
#include <math.h>

static void check_table(void)
{
    for (enum ckpt_dtype dt = 0; dt < CKPT_DT_OTHER; dt++) {
        const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
        enum ckpt_dtype got;
        CHECK(info->name && info->descr && info->size && info->size % info->swap == 0);
        CHECK(ckpt_dtype_by_name(info->name, &got) && got == dt);
        if (info->safetensors)
            CHECK(ckpt_dtype_by_safetensors(info->safetensors, &got) && got == dt);
    }
    CHECK(ckpt_dtype_info(CKPT_DT_OTHER)->size == 0);
    CHECK(ckpt_dtype_info((enum ckpt_dtype)1000) == ckpt_dtype_info(CKPT_DT_OTHER));
    CHECK_STR(ckpt_dtype_info(CKPT_DT_BF16)->descr, "<V2");
    CHECK_STR(ckpt_dtype_info(CKPT_DT_F8_E5M2)->descr, "|V1");
    CHECK_STR(ckpt_dtype_info(CKPT_DT_I2)->descr, "|i1");
    CHECK_STR(ckpt_dtype_info(CKPT_DT_U4)->descr, "|u1");
    CHECK_STR(ckpt_dtype_info(CKPT_DT_F8_E4M3FN)->safetensors, "F8_E4M3");
    enum ckpt_dtype dt;
    CHECK(!ckpt_dtype_by_name("other", &dt) && !ckpt_dtype_by_name("", &dt) && !ckpt_dtype_by_safetensors("F4", &dt));
}

static void check_descr(void)
{
    static const struct {
        const char *descr;
        enum ckpt_dtype dt;
        bool big;
    } good[] = {
        {"<f4", CKPT_DT_F32, false},
        {">f4", CKPT_DT_F32, true},
        {"=f8", CKPT_DT_F64, false},
        {"|f2", CKPT_DT_F16, false},
        {"f4", CKPT_DT_F32, false},
        {">c16", CKPT_DT_C128, true},
        {"<c8", CKPT_DT_C64, false},
        {"|b1", CKPT_DT_BOOL, false},
        {"?", CKPT_DT_BOOL, false},
        {"|?", CKPT_DT_BOOL, false},
        {"b1", CKPT_DT_BOOL, false},
        {">i1", CKPT_DT_I8, false},
        {"i1", CKPT_DT_I8, false},
        {"=u1", CKPT_DT_U8, false},
        {"u1", CKPT_DT_U8, false},
        {">u8", CKPT_DT_U64, true},
        {"bfloat16", CKPT_DT_BF16, false},
        {"int4", CKPT_DT_I4, false},
        {"int2", CKPT_DT_I2, false},
        {"uint4", CKPT_DT_U4, false},
        {"float8_e5m2", CKPT_DT_F8_E5M2, false},
        {"float32", CKPT_DT_F32, false},
        {"<i8", CKPT_DT_I64, false},
        {"float4_e2m1fn", CKPT_DT_F4_E2M1FN, false},
        {"float8_e4m3b11fnuz", CKPT_DT_F8_E4M3B11FNUZ, false},
    };
    static const char *bad[] = {"",    "<",   "f",   "<f",  "<f16", "<f3", "c4",  "<V2", "|V1",       "V4",
                                "<U3", "|S1", "|O8", "<M8", "<<f4", "f4 ", " f4", "<b4", ">bfloat16", "<float32"};
    enum ckpt_dtype dt;
    bool big;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        CHECK(ckpt_dtype_by_descr(good[i].descr, &dt, &big));
        CHECK(dt == good[i].dt && big == good[i].big);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK(!ckpt_dtype_by_descr(bad[i], &dt, &big));
}

static void check_swap_and_extend(void)
{
    uint8_t a[16];
    for (unsigned i = 0; i < sizeof a; i++)
        a[i] = (uint8_t)i;
    ckpt_dtype_swap(CKPT_DT_C32, a, 1); /* two float16, each by itself */
    CHECK(!memcmp(a, "\1\0\3\2\4", 5));
    ckpt_dtype_swap(CKPT_DT_C32, a, 1);
    ckpt_dtype_swap(CKPT_DT_C64, a, 1);
    CHECK(!memcmp(a, "\3\2\1\0\7\6\5\4\10", 9));
    ckpt_dtype_swap(CKPT_DT_C64, a, 1);
    ckpt_dtype_swap(CKPT_DT_C128, a, 1);
    CHECK(!memcmp(a, "\7\6\5\4\3\2\1\0\17\16\15\14\13\12\11\10", 16));
    ckpt_dtype_swap(CKPT_DT_U8, a, 16);
    ckpt_dtype_swap(CKPT_DT_OTHER, a, 16);
    CHECK(!memcmp(a, "\7\6\5\4", 4));
    uint8_t wide[] = "abcdefghijklmnopqrstuvwx";
    ckpt_swap_words(wide, 24, 12); /* long doubles */
    CHECK_STR((char *)wide, "lkjihgfedcbaxwvutsrqponm");
    ckpt_swap_words(wide, 24, 3);
    CHECK_STR((char *)wide, "jklghidefabcvwxstupqrmno");
    ckpt_swap_words(wide, 24, 0);
    ckpt_swap_words(wide, 24, 1);
    CHECK_STR((char *)wide, "jklghidefabcvwxstupqrmno");

    uint8_t i4[] = {0x08, 0x0f, 0x07, 0xf7, 0xf8}, u4[] = {0xff, 0x08}, i2[] = {2, 3, 1, 0x7e}, u2[] = {0xff, 0x10};
    ckpt_dtype_extend(CKPT_DT_I4, i4, sizeof i4);
    CHECK(!memcmp(i4, "\xf8\xff\x07\x07\xf8", 5));
    ckpt_dtype_extend(CKPT_DT_U4, u4, sizeof u4);
    CHECK(!memcmp(u4, "\x0f\x08", 2));
    ckpt_dtype_extend(CKPT_DT_I2, i2, sizeof i2);
    CHECK(!memcmp(i2, "\xfe\xff\x01\xfe", 4));
    ckpt_dtype_extend(CKPT_DT_U2, u2, sizeof u2);
    CHECK(u2[0] == 3 && u2[1] == 0);
    uint8_t i8 = 0x80;
    ckpt_dtype_extend(CKPT_DT_I8, &i8, 1);
    ckpt_dtype_extend(CKPT_DT_OTHER, &i8, 1);
    CHECK(i8 == 0x80);
}

/* The values are those of ml_dtypes. */
static void check_flip(void)
{
    float f[] = {1.5f, -0.0f, 2, -3};
    ckpt_dtype_flip(CKPT_DT_F32, CKPT_FLIP_REAL, f, 2);
    CHECK(f[0] == -1.5f && !signbit(f[1]) && f[2] == 2);
    ckpt_dtype_flip(CKPT_DT_C64, CKPT_FLIP_IMAG, f, 2);
    CHECK(f[0] == -1.5f && signbit(f[1]) && f[2] == 2 && f[3] == 3);
    ckpt_dtype_flip(CKPT_DT_C64, CKPT_FLIP_REAL | CKPT_FLIP_IMAG, f, 1);
    CHECK(f[0] == 1.5f && !signbit(f[1]) && f[2] == 2);
    ckpt_dtype_flip(CKPT_DT_F32, CKPT_FLIP_IMAG, f, 4);
    ckpt_dtype_flip(CKPT_DT_I32, CKPT_FLIP_REAL, f, 4);
    CHECK(f[0] == 1.5f && f[2] == 2 && f[3] == 3);
}

static void check_small_floats(void)
{
    static const struct {
        enum ckpt_dtype dt;
        uint16_t bits;
        double value;
    } cases[] = {
        {CKPT_DT_F16, 0x3c00, 1},
        {CKPT_DT_F16, 0x0001, 0x1p-24},
        {CKPT_DT_F16, 0x83ff, -0x1.ff8p-15},
        {CKPT_DT_F16, 0x7bff, 65504},
        {CKPT_DT_F16, 0xfc00, -INFINITY},
        {CKPT_DT_F16, 0x7e00, NAN},
        {CKPT_DT_BF16, 0x3f80, 1},
        {CKPT_DT_BF16, 0x0001, 0x1p-133},
        {CKPT_DT_BF16, 0xff80, -INFINITY},
        {CKPT_DT_BF16, 0x7fc0, NAN},
        {CKPT_DT_F8_E4M3FN, 0x7e, 448},
        {CKPT_DT_F8_E4M3FN, 0x7f, NAN},
        {CKPT_DT_F8_E4M3FN, 0xff, NAN},
        {CKPT_DT_F8_E4M3FN, 0x78, 256},
        {CKPT_DT_F8_E4M3FN, 0x01, 0x1p-9},
        {CKPT_DT_F8_E4M3FN, 0x80, -0.0},
        {CKPT_DT_F8_E4M3FNUZ, 0x7f, 240},
        {CKPT_DT_F8_E4M3FNUZ, 0x80, NAN},
        {CKPT_DT_F8_E4M3FNUZ, 0x01, 0x1p-10},
        {CKPT_DT_F8_E4M3B11FNUZ, 0x7f, 30},
        {CKPT_DT_F8_E4M3B11FNUZ, 0x80, NAN},
        {CKPT_DT_F8_E4M3B11FNUZ, 0x81, -0x1p-13},
        {CKPT_DT_F8_E5M2, 0x7b, 57344},
        {CKPT_DT_F8_E5M2, 0x7c, INFINITY},
        {CKPT_DT_F8_E5M2, 0xfd, NAN},
        {CKPT_DT_F8_E5M2, 0x01, 0x1p-16},
        {CKPT_DT_F8_E5M2FNUZ, 0x7f, 57344},
        {CKPT_DT_F8_E5M2FNUZ, 0x80, NAN},
        {CKPT_DT_F8_E5M2FNUZ, 0x01, 0x1p-17},
        {CKPT_DT_F8_E3M4, 0x6f, 15.5},
        {CKPT_DT_F8_E3M4, 0x70, INFINITY},
        {CKPT_DT_F8_E3M4, 0x71, NAN},
        {CKPT_DT_F8_E3M4, 0x01, 0x1p-6},
        {CKPT_DT_F8_E4M3, 0x77, 240},
        {CKPT_DT_F8_E4M3, 0xf8, -INFINITY},
        {CKPT_DT_F8_E4M3, 0x79, NAN},
        {CKPT_DT_F8_E8M0FNU, 0x00, 0x1p-127},
        {CKPT_DT_F8_E8M0FNU, 0x7f, 1},
        {CKPT_DT_F8_E8M0FNU, 0xfe, 0x1p127},
        {CKPT_DT_F8_E8M0FNU, 0xff, NAN},
        {CKPT_DT_F4_E2M1FN, 0x01, 0.5},
        {CKPT_DT_F4_E2M1FN, 0x07, 6},
        {CKPT_DT_F4_E2M1FN, 0x0f, -6},
        {CKPT_DT_F6_E2M3FN, 0x1f, 7.5},
        {CKPT_DT_F6_E2M3FN, 0x01, 0.125},
        {CKPT_DT_F6_E3M2FN, 0x1f, 28},
        {CKPT_DT_F6_E3M2FN, 0x21, -0.0625},
        {CKPT_DT_I4, 0x08, -8}, /* stored, high bits undefined */
        {CKPT_DT_U4, 0xff, 15},
        {CKPT_DT_I1, 0x01, -1},
        {CKPT_DT_U1, 0xff, 1},
        {CKPT_DT_BOOL, 1, 1},
        {CKPT_DT_I16, 0xffff, -1},
        {CKPT_DT_OTHER, 0, NAN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double got = ckpt_dtype_to_double(cases[i].dt, &cases[i].bits), want = cases[i].value;
        if (isnan(want))
            CHECK(isnan(got));
        else
            CHECK(got == want && !signbit(got) == !signbit(want));
    }
    float c64[2] = {1.5f, 2};
    CHECK(ckpt_dtype_to_double(CKPT_DT_C64, c64) == 1.5);
    uint16_t c32[2] = {0x3c00, 0};
    CHECK(ckpt_dtype_to_double(CKPT_DT_C32, c32) == 1);
}

static void check_json_of(const char *want, enum ckpt_dtype dt, const void *element)
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    CHECK(ckpt_dtype_add_json(&buf, dt, element));
    char *text = ckpt_buf_steal(&buf, NULL);
    CHECK(text);
    CHECK_STR(text, want);
    free(text);
}

/* Python's json.dumps. */
static void check_json(void)
{
    static const struct {
        double value;
        const char *want;
    } doubles[] = {
        {0, "0.0"},
        {-0.0, "-0.0"},
        {1, "1.0"},
        {0.1, "0.1"},
        {0.001, "0.001"},
        {0.0001, "0.0001"},
        {0.00001, "1e-05"},
        {-1.5e-7, "-1.5e-07"},
        {123456.789, "123456.789"},
        {1234567890123456.0, "1234567890123456.0"},
        {1e15, "1000000000000000.0"},
        {1e16, "1e+16"},
        {9007199254740993.0, "9007199254740992.0"},
        {12345678901234567890.0, "1.2345678901234567e+19"},
        {1e22, "1e+22"},
        {1e23, "1e+23"},
        {5e-324, "5e-324"},
        {0x1p-1022, "2.2250738585072014e-308"},
        {0x1.fffffffffffffp1023, "1.7976931348623157e+308"},
        {0x1p-44, "5.684341886080802e-14"}, /* not the nearest 16 digits */
        {0x1p-1017, "7.120236347223045e-307"},
        {0x1p89, "6.189700196426902e+26"},
        {0.1 + 0.2, "0.30000000000000004"},
        {NAN, "NaN"},
        {-NAN, "NaN"},
        {INFINITY, "Infinity"},
        {-INFINITY, "-Infinity"},
    };
    for (size_t i = 0; i < sizeof doubles / sizeof doubles[0]; i++)
        check_json_of(doubles[i].want, CKPT_DT_F64, &doubles[i].value);
    check_json_of("0.10000000149011612", CKPT_DT_F32, &(float){0.1f});
    check_json_of("0.0999755859375", CKPT_DT_F16, &(uint16_t){0x2e66});
    check_json_of("0.10009765625", CKPT_DT_BF16, &(uint16_t){0x3dcd});
    check_json_of("448.0", CKPT_DT_F8_E4M3FN, &(uint8_t){0x7e});
    check_json_of("true", CKPT_DT_BOOL, &(uint8_t){1});
    check_json_of("false", CKPT_DT_BOOL, &(uint8_t){0});
    check_json_of("-9223372036854775808", CKPT_DT_I64, &(int64_t){INT64_MIN});
    check_json_of("18446744073709551615", CKPT_DT_U64, &(uint64_t){UINT64_MAX});
    check_json_of("-1", CKPT_DT_I2, &(uint8_t){3});
    check_json_of("-32768", CKPT_DT_I16, &(int16_t){-32768});
    check_json_of("4000000000", CKPT_DT_U32, &(uint32_t){4000000000u});

    struct ckpt_buf buf = CKPT_BUF_INIT;
    double c[2] = {1, 2};
    CHECK(!ckpt_dtype_add_json(&buf, CKPT_DT_C128, c) && !ckpt_dtype_add_json(&buf, CKPT_DT_OTHER, c) && !buf.len);
}

static void check_number(void)
{
    static const struct {
        double value;
        const char *want;
    } cases[] = {{7, "7"},
                 {-1, "-1"},
                 {0.5, "0.5"},
                 {1e-5, "1e-05"},
                 {1e16, "10000000000000000"},
                 {1763900000000000000, "1763900000000000000"},
                 {1e20, "1e+20"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct ckpt_buf buf = CKPT_BUF_INIT;
        ckpt_add_json_number(&buf, cases[i].value);
        ckpt_buf_addc(&buf, 0);
        CHECK_STR((char *)buf.data, cases[i].want);
        ckpt_buf_clear(&buf);
    }
}

/* Whatever is written reads back, with no more digits than needed. */
static void check_json_random(void)
{
    uint64_t state = 1;
    for (int i = 0; i < 20000; i++) {
        double value;
        struct ckpt_digits d;
        char fewer[48];
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint64_t bits = state ^ state >> 29;
        memcpy(&value, &bits, sizeof value);
        if (!isfinite(value))
            continue;
        struct ckpt_buf buf = CKPT_BUF_INIT;
        ckpt_add_json_double(&buf, value);
        char *text = ckpt_buf_steal(&buf, NULL), *end;
        CHECK(text && strtod(text, &end) == value && !*end);
        free(text);
        ckpt_digits_shortest(&d, value, CKPT_DIGITS_F64);
        if (d.len > 1) {
            snprintf(fewer, sizeof fewer, "%.*e", d.len - 2, value);
            CHECK(strtod(fewer, NULL) != value);
        }
    }
}

/* Every element of 8 and 16 bits, and many of the others, comes back from its JSON text; of NaN some NaN does. */
static void check_back(enum ckpt_dtype dt, const uint8_t element[8])
{
    struct ckpt_buf buf = CKPT_BUF_INIT;
    uint8_t own[16] = {0}, back[16] = {0};
    memcpy(own, element, ckpt_dtype_info(dt)->size);
    ckpt_dtype_extend(dt, own, 1);
    if (dt == CKPT_DT_BOOL)
        own[0] &= 1;
    CHECK(ckpt_dtype_add_json(&buf, dt, own));
    CKPT_AUTOFREE char *text = ckpt_buf_steal(&buf, NULL);
    CHECK(text && ckpt_dtype_of_json(dt, text, back));
    if (isnan(ckpt_dtype_to_double(dt, own)))
        CHECK(isnan(ckpt_dtype_to_double(dt, back)));
    else
        CHECK(ckpt_dtype_to_double(dt, back) == ckpt_dtype_to_double(dt, own));
    bool one_code = ckpt_dtype_info(dt)->size >= 2 && !isnan(ckpt_dtype_to_double(dt, own));
    CHECK(!one_code || !memcmp(own, back, ckpt_dtype_info(dt)->size));
}

static void check_from_json(void)
{
    for (enum ckpt_dtype dt = 0; dt < CKPT_DT_OTHER; dt++) {
        const struct ckpt_dtype_info *info = ckpt_dtype_info(dt);
        unsigned steps = info->size == 1 ? 256 : 65536;
        if (info->klass == CKPT_DC_COMPLEX)
            continue;
        for (uint64_t i = 0; i < steps; i++) {
            uint64_t bits = info->size > 2 ? i * 0x9e3779b97f4a7c15 >> (64 - 8 * info->size) : i;
            check_back(dt, (uint8_t *)&bits);
        }
    }
    static const struct {
        enum ckpt_dtype dt;
        const char *text;
    } bad[] = {
        {CKPT_DT_F32, "0.1"},
        {CKPT_DT_F16, "65536.0"},
        {CKPT_DT_BF16, "1.001"},
        {CKPT_DT_F64, "1"},
        {CKPT_DT_F32, "1"},
        {CKPT_DT_I8, "128"},
        {CKPT_DT_I8, "-129"},
        {CKPT_DT_U8, "-1"},
        {CKPT_DT_U8, "256"},
        {CKPT_DT_I4, "8"},
        {CKPT_DT_U4, "16"},
        {CKPT_DT_I64, "9223372036854775808"},
        {CKPT_DT_U64, "18446744073709551616"},
        {CKPT_DT_I32, "1.0"},
        {CKPT_DT_BOOL, "1"},
        {CKPT_DT_I32, "true"},
        {CKPT_DT_F32, "null"},
        {CKPT_DT_F32, "\"1.0\""},
        {CKPT_DT_OTHER, "1"},
        {CKPT_DT_C64, "1.0"},
        {CKPT_DT_F32, ""},
        {CKPT_DT_I32, ""},
        {CKPT_DT_I32, "-"},
        {CKPT_DT_F8_E4M3FN, "Infinity"},
        {CKPT_DT_F8_E8M0FNU, "0.0"},
    };
    uint8_t element[16];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        CHECK(!ckpt_dtype_of_json(bad[i].dt, bad[i].text, element));
    CHECK(ckpt_dtype_for_json("true") == CKPT_DT_BOOL && ckpt_dtype_for_json("1.0") == CKPT_DT_F64);
    CHECK(ckpt_dtype_for_json("-1") == CKPT_DT_I64 && ckpt_dtype_for_json("18446744073709551615") == CKPT_DT_U64);
    CHECK(ckpt_dtype_for_json("18446744073709551616") == CKPT_DT_OTHER && ckpt_dtype_for_json("null") == CKPT_DT_OTHER);
    CHECK(ckpt_dtype_for_json("NaN") == CKPT_DT_F64 && ckpt_dtype_for_json("-Infinity") == CKPT_DT_F64);
}

int main(void)
{
    check_table();
    check_descr();
    check_swap_and_extend();
    check_flip();
    check_small_floats();
    check_json();
    check_number();
    check_json_random();
    check_from_json();
    if (setlocale(LC_ALL, "de_DE.UTF-8")) /* a decimal comma must change nothing */
        check_json();
    return 0;
}
