/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NumPy's numpy/_core/arrayprint.py (2.4) with its defaults. The elements that will be printed are fetched first, in
 * the order of printing; they alone decide the format that all share; then they are laid out.
 */
#include "core/array/print.h"

#include "core/array/digits.h"
#include "core/base/util.h"

#include <errno.h>
#include <math.h>

/* NumPy's default print options. */
#define THRESHOLD  1000
#define EDGE_ITEMS 3
#define LINE_WIDTH 75
#define PRECISION  8

/* How the floats of an array are written: numpy's FloatingFormat. */
struct float_format {
    enum ckpt_digits_width width;
    bool plus;               /* '+' where there is no '-': imaginary parts */
    bool exp;                /* d.ddde+xx, else ddd.ddd */
    int precision, exp_size; /* exp: digits after the point and of the exponent, the same for all */
    int pad_left, pad_right; /* characters before and after the point */
};

struct printer {
    struct ckpt_buf *buf, word;
    const struct ckpt_dtype_info *info;
    enum ckpt_dtype dt;
    unsigned ndim;
    const uint64_t *shape;
    bool summary;
    uint8_t *data; /* the elements to print */
    size_t count, next;
    size_t int_width;
    struct float_format real, imag;
    int (*get)(void *arg, const uint64_t *index, void *element);
    void *arg;
};

/* --- elements */

/* The types that NumPy has no code for are shown as float32 and complex64. */
static enum ckpt_digits_width digits_width(enum ckpt_dtype dt)
{
    if (dt == CKPT_DT_F64 || dt == CKPT_DT_C128)
        return CKPT_DIGITS_F64;
    return dt == CKPT_DT_F16 ? CKPT_DIGITS_F16 : CKPT_DIGITS_F32;
}

static double part(const struct printer *p, size_t i, bool imag)
{
    return ckpt_dtype_to_double(p->dt, p->data + i * p->info->size + (imag ? p->info->size / 2 : 0));
}

/* --- one float */

/* The digits of places from to end - 1, place 0 being the first one; there are zeros around them. */
static void add_places(struct ckpt_buf *buf, const struct ckpt_digits *d, int from, int end)
{
    for (int i = from; i < end; i++) {
        bool is_known = i >= 0 && i < d->len;
        ckpt_buf_addc(buf, is_known ? d->text[i] : '0');
    }
}

static int whole_places(const struct ckpt_digits *d)
{
    return CKPT_MAX(d->exp10 + 1, 1);
}

static int fraction_places(const struct ckpt_digits *d)
{
    return CKPT_MAX(d->len - 1 - d->exp10, 0);
}

static void add_positional(struct ckpt_buf *buf, const struct ckpt_digits *d)
{
    add_places(buf, d, CKPT_MIN(d->exp10, 0), d->exp10 + 1);
    ckpt_buf_addc(buf, '.');
    add_places(buf, d, d->exp10 + 1, d->exp10 + 1 + fraction_places(d));
}

static const char *sign_of(double value, bool plus)
{
    if (signbit(value))
        return "-";
    return plus ? "+" : "";
}

static const char *nonfinite_name(double value, bool plus)
{
    if (isnan(value))
        return plus ? "+nan" : "nan";
    if (value < 0)
        return "-inf";
    return plus ? "+inf" : "inf";
}

/* --- the format of many floats */

/* The shortest digits, cut where the format ends: at PRECISION places after the point. */
static void cut_digits(struct ckpt_digits *ret, double value, const struct float_format *f)
{
    ckpt_digits_shortest(ret, value, f->width);
    int most = PRECISION + 1 + (f->exp ? 0 : ret->exp10);
    if (ret->len > most)
        ckpt_digits_fixed(ret, value, f->width, CKPT_MAX(most, 1));
}

/* Compared in the array's own type, as NumPy does; the upper limit depends on the digits that the type holds
 * (numpy.finfo.precision). */
static bool wants_exp(enum ckpt_digits_width width, double min, double max)
{
    switch (width) {
    case CKPT_DIGITS_F16:
        return max >= 1e3 || min < ckpt_nearest_f16(1e-4) || ckpt_nearest_f16((float)max / (float)min) > 1000;
    case CKPT_DIGITS_F32:
        return max >= 1e6 || (float)min < 1e-4f || (float)max / (float)min > 1000;
    default:
        return max >= 1e8 || min < 1e-4 || max / min > 1000;
    }
}

static void choose_float_format(const struct printer *p, bool imag, struct float_format *f)
{
    double min = INFINITY, max = 0;
    bool nonfinite = false, negative_inf = imag;
    int fraction = 0;

    *f = (struct float_format){.width = digits_width(p->dt), .plus = imag};
    for (size_t i = 0; i < p->count; i++) {
        double value = part(p, i, imag);
        if (!isfinite(value)) {
            nonfinite = true;
            negative_inf |= value < 0;
        } else if (value != 0) {
            min = fmin(min, fabs(value));
            max = fmax(max, fabs(value));
        }
    }
    f->exp = max > 0 && wants_exp(f->width, min, max);
    for (size_t i = 0; i < p->count; i++) {
        double value = part(p, i, imag);
        struct ckpt_digits d;
        if (!isfinite(value))
            continue;
        cut_digits(&d, value, f);
        int sign = (int)strlen(sign_of(value, f->plus));
        f->pad_left = CKPT_MAX(f->pad_left, sign + (f->exp ? 1 : whole_places(&d)));
        f->exp_size = CKPT_MAX(f->exp_size, abs(d.exp10) >= 100 ? 3 : 2);
        fraction = CKPT_MAX(fraction, f->exp ? d.len - 1 : fraction_places(&d));
    }
    f->precision = fraction;
    f->pad_right = f->exp ? f->exp_size + 2 + fraction : fraction;
    if (nonfinite) { /* room for nan and inf, which are written across the point */
        f->pad_left = CKPT_MAX(f->pad_left, 3 - (f->pad_right + 1));
        f->pad_left = CKPT_MAX(f->pad_left, 3 + negative_inf - (f->pad_right + 1));
    }
}

static void format_float(struct ckpt_buf *word, const struct float_format *f, double value)
{
    struct ckpt_digits d;
    if (!isfinite(value)) {
        ckpt_buf_addf(word, "%*s", f->pad_left + f->pad_right + 1, nonfinite_name(value, f->plus));
        return;
    }
    const char *sign = sign_of(value, f->plus);
    if (!f->exp) {
        cut_digits(&d, value, f);
        ckpt_buf_addf(word, "%*s", f->pad_left - whole_places(&d), sign);
        add_positional(word, &d);
        ckpt_buf_addf(word, "%*s", f->pad_right - fraction_places(&d), "");
        return;
    }
    /* all have the same number of digits: those beyond the shortest are the value's own, not zeros */
    ckpt_digits_fixed(&d, value, f->width, f->precision + 1);
    ckpt_buf_addf(word, "%*s%c.", f->pad_left - 1, sign, d.text[0]);
    add_places(word, &d, 1, f->precision + 1);
    ckpt_buf_addf(word, "e%c%0*d", d.exp10 < 0 ? '-' : '+', f->exp_size, abs(d.exp10));
}

/* --- elements of an array */

static void format_complex(struct printer *p, size_t i)
{
    format_float(&p->word, &p->real, part(p, i, false));
    format_float(&p->word, &p->imag, part(p, i, true));
    size_t spaces = 0; /* the j goes before the padding */
    while (p->word.len && p->word.data[p->word.len - 1] == ' ') {
        p->word.len--;
        spaces++;
    }
    ckpt_buf_addf(&p->word, "j%*s", (int)spaces, "");
}

/* Element i in p->word. */
static void format_element(struct printer *p, size_t i)
{
    const uint8_t *element = p->data + i * p->info->size;
    p->word.len = 0;
    switch (p->info->klass) {
    case CKPT_DC_BOOL:
        ckpt_buf_adds(&p->word, *element ? " True" : "False");
        break;
    case CKPT_DC_FLOAT:
        format_float(&p->word, &p->real, part(p, i, false));
        break;
    case CKPT_DC_COMPLEX:
        format_complex(p, i);
        break;
    default: { /* integers have the form of their JSON */
        ckpt_dtype_add_json(&p->word, p->dt, element);
        size_t len = p->word.len;
        if (len < p->int_width && ckpt_buf_reserve(&p->word, p->int_width - len) == 0) {
            memmove(p->word.data + p->int_width - len, p->word.data, len);
            memset(p->word.data, ' ', p->int_width - len);
            p->word.len = p->int_width;
        }
    }
    }
}

static void choose_format(struct printer *p)
{
    switch (p->info->klass) {
    case CKPT_DC_FLOAT:
        choose_float_format(p, false, &p->real);
        break;
    case CKPT_DC_COMPLEX:
        choose_float_format(p, false, &p->real);
        choose_float_format(p, true, &p->imag);
        break;
    case CKPT_DC_INT:
    case CKPT_DC_UINT: {
        size_t widest = 0;
        for (size_t i = 0; i < p->count; i++) {
            format_element(p, i);
            widest = CKPT_MAX(widest, p->word.len);
        }
        p->int_width = widest;
        break;
    }
    default:
        break;
    }
}

/* --- layout: numpy's _formatArray */

/* Of dimension dim, items [0, leading) and [n - trailing, n) are printed, with "..." between when leading is not 0. */
static void shown_items(const struct printer *p, unsigned dim, uint64_t *ret_leading, uint64_t *ret_trailing)
{
    bool cut = p->summary && p->shape[dim] > 2 * EDGE_ITEMS;
    *ret_leading = cut ? EDGE_ITEMS : 0;
    *ret_trailing = cut ? EDGE_ITEMS : p->shape[dim];
}

static void add_spaces(struct ckpt_buf *buf, unsigned n)
{
    ckpt_buf_addf(buf, "%*s", (int)n, "");
}

/* Put a word after what the line has, in a new line if it does not fit (and the line has a word). */
static void add_word(struct printer *p, size_t *column, unsigned indent, const void *word, size_t len)
{
    /* every bracket that closes here or further out takes a column from the line */
    if (*column + len > LINE_WIDTH - indent && *column > indent) {
        while (p->buf->len && p->buf->data[p->buf->len - 1] == ' ')
            p->buf->len--;
        ckpt_buf_addc(p->buf, '\n');
        add_spaces(p->buf, indent);
        *column = indent;
    }
    ckpt_buf_add(p->buf, word, len);
    *column += len;
}

static void print_row(struct printer *p, unsigned dim)
{
    unsigned indent = dim + 1;
    size_t column = indent;
    uint64_t leading, trailing;
    shown_items(p, dim, &leading, &trailing);
    ckpt_buf_addc(p->buf, '[');
    for (uint64_t i = 0; i < leading + trailing; i++) {
        if (i > 0) {
            ckpt_buf_addc(p->buf, ' ');
            column++;
        }
        if (i > 0 && i == leading) {
            add_word(p, &column, indent, "...", 3);
            ckpt_buf_addc(p->buf, ' ');
            column++;
        }
        format_element(p, p->next++);
        add_word(p, &column, indent, p->word.data, p->word.len);
    }
    ckpt_buf_addc(p->buf, ']');
}

/* As many newlines as there are dimensions below. */
static void next_row(struct printer *p, unsigned dim)
{
    for (unsigned n = dim + 1; n < p->ndim; n++)
        ckpt_buf_addc(p->buf, '\n');
    add_spaces(p->buf, dim + 1);
}

/* Rows of rows; the depth is at most CKPT_MAX_DIMS. */
static void print_dim(struct printer *p, unsigned dim)
{
    uint64_t leading, trailing;
    if (dim + 1 == p->ndim) {
        print_row(p, dim);
        return;
    }
    shown_items(p, dim, &leading, &trailing);
    ckpt_buf_addc(p->buf, '[');
    for (uint64_t i = 0; i < leading + trailing; i++) {
        if (i > 0)
            next_row(p, dim);
        if (i > 0 && i == leading) {
            ckpt_buf_adds(p->buf, "...");
            next_row(p, dim);
        }
        print_dim(p, dim + 1);
    }
    ckpt_buf_addc(p->buf, ']');
}

/* --- scalars: numpy's str() of one, which neither cuts nor pads */

static void add_scalar_float(struct ckpt_buf *buf, double value, enum ckpt_digits_width width, bool plus, bool complex)
{
    static const double limits[] = {[CKPT_DIGITS_F16] = 1e3, [CKPT_DIGITS_F32] = 1e6, [CKPT_DIGITS_F64] = 1e16};
    double size = fabs(value);
    struct ckpt_digits d;

    if (!isfinite(value)) {
        ckpt_buf_adds(buf, nonfinite_name(value, plus));
        return;
    }
    ckpt_buf_adds(buf, sign_of(value, plus));
    ckpt_digits_shortest(&d, value, width);
    bool wants_exponent = size != 0 && (size < 1e-4 || size >= limits[width]);
    if (wants_exponent) {
        ckpt_buf_addc(buf, d.text[0]);
        if (d.len > 1)
            ckpt_buf_addf(buf, ".%s", d.text + 1);
        ckpt_buf_addf(buf, "e%c%02d", d.exp10 < 0 ? '-' : '+', abs(d.exp10));
        return;
    }
    if (complex && fraction_places(&d) == 0) { /* no point without a fraction */
        add_places(buf, &d, CKPT_MIN(d.exp10, 0), d.exp10 + 1);
        return;
    }
    add_positional(buf, &d);
    if (fraction_places(&d) == 0)
        ckpt_buf_addc(buf, '0');
}

static void print_scalar(struct printer *p)
{
    enum ckpt_digits_width width = digits_width(p->dt);
    double real = part(p, 0, false);
    switch (p->info->klass) {
    case CKPT_DC_BOOL:
        ckpt_buf_adds(p->buf, *p->data ? "True" : "False");
        break;
    case CKPT_DC_FLOAT:
        add_scalar_float(p->buf, real, width, false, false);
        break;
    case CKPT_DC_COMPLEX: {
        bool whole = real != 0 || signbit(real); /* a positive zero is left out */
        if (whole) {
            ckpt_buf_addc(p->buf, '(');
            add_scalar_float(p->buf, real, width, false, true);
        }
        add_scalar_float(p->buf, part(p, 0, true), width, whole, true);
        ckpt_buf_adds(p->buf, whole ? "j)" : "j");
        break;
    }
    default:
        ckpt_dtype_add_json(p->buf, p->dt, p->data);
    }
}

/* --- fetching */

static int fetch_dim(struct printer *p, unsigned dim, uint64_t *index)
{
    uint64_t leading, trailing;
    if (dim == p->ndim)
        return p->get(p->arg, index, p->data + p->count++ * p->info->size);
    shown_items(p, dim, &leading, &trailing);
    for (uint64_t i = 0; i < leading + trailing; i++) {
        index[dim] = i < leading ? i : p->shape[dim] - trailing + (i - leading);
        int r = fetch_dim(p, dim + 1, index);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Fetch what will be printed. */
static int fetch(struct printer *p)
{
    uint64_t index[CKPT_MAX_DIMS] = {0}, total = 1, shown = 1, leading, trailing;
    bool large = false;
    for (unsigned i = 0; i < p->ndim; i++)
        large |= ckpt_mul(total, p->shape[i], &total);
    p->summary = large || total > THRESHOLD;
    for (unsigned i = 0; i < p->ndim; i++) {
        shown_items(p, i, &leading, &trailing);
        shown *= leading + trailing;
        if (shown > CKPT_PRINT_MAX) /* each factor is 1 to THRESHOLD: no overflow before this */
            return -EFBIG;
    }
    p->data = malloc(shown * p->info->size);
    if (!p->data)
        return -ENOMEM;
    return fetch_dim(p, 0, index);
}

int ckpt_print_array(struct ckpt_buf *buf, enum ckpt_dtype dt, unsigned ndim, const uint64_t *shape,
                     int (*get)(void *arg, const uint64_t *index, void *element), void *arg)
{
    struct printer p = {
        .buf = buf, .info = ckpt_dtype_info(dt), .dt = dt, .ndim = ndim, .shape = shape, .get = get, .arg = arg};

    if (p.info->klass == CKPT_DC_OTHER || ndim > CKPT_MAX_DIMS)
        return -EOPNOTSUPP;
    for (unsigned i = 0; i < ndim; i++)
        if (shape[i] == 0) {
            ckpt_buf_adds(buf, "[]\n");
            return ckpt_buf_error(buf);
        }
    int r = fetch(&p);
    if (r == 0) {
        choose_format(&p);
        if (ndim == 0)
            print_scalar(&p);
        else
            print_dim(&p, 0);
        ckpt_buf_addc(buf, '\n');
        r = p.word.error ? p.word.error : ckpt_buf_error(buf);
    }
    ckpt_buf_clear(&p.word);
    free(p.data);
    return r;
}
