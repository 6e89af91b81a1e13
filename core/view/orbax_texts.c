/* SPDX-License-Identifier: Apache-2.0 */
/* The files of an Orbax layout that are text: what the tree is, its strings, and what belongs to the step. */
#include "core/view/orbax_private.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <stdio.h>

#define HANDLER "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"

/* --- _METADATA --- */

/* A key as the index of a sequence, as Orbax writes them: digits, without a zero before them. */
static bool parse_index(const char *key, size_t len, uint64_t *ret)
{
    bool leading_zero = len > 1 && *key == '0';
    if (!len || len > 10 || leading_zero)
        return false;
    *ret = 0;
    for (size_t i = 0; i < len; i++) {
        if (key[i] < '0' || key[i] > '9')
            return false;
        *ret = *ret * 10 + (uint64_t)(key[i] - '0');
    }
    return true;
}

/* Puts the children of a container in their places; false: they are not 0, 1, ... all kept. */
static bool fill_sequence(const struct maker *m, uint32_t dir, uint32_t *all, uint32_t count)
{
    const struct ckpt_node *nodes = m->tree->nodes;
    for (uint32_t i = 0; i < count; i++)
        all[i] = CKPT_NO_NODE;
    for (uint32_t at = nodes[dir].first; at != CKPT_NO_NODE; at = nodes[at].next) {
        size_t len;
        uint64_t index;
        const char *key = ckpt_tree_text(m->tree, nodes[at].key, &len);
        bool kept = nodes[at].kind == CKPT_NODE_DIR || m->fates[at] != OUT;
        if (!kept || !parse_index(key, len, &index))
            return false;
        if (index >= count || all[index] != CKPT_NO_NODE)
            return false;
        all[index] = at;
    }
    return true;
}

int ckpt_orbax_text_sequence(const struct maker *m, uint32_t dir, uint32_t **ret, uint32_t *ret_count)
{
    const struct ckpt_node *nodes = m->tree->nodes;
    uint32_t n = 0;
    *ret = NULL;
    *ret_count = 0;
    if (nodes[dir].container != CKPT_LIST && nodes[dir].container != CKPT_TUPLE)
        return 0;
    for (uint32_t at = nodes[dir].first; at != CKPT_NO_NODE; at = nodes[at].next)
        n++;
    uint32_t *all = malloc((n + (size_t)1) * sizeof *all);
    if (!all)
        return -ENOMEM;
    if (!fill_sequence(m, dir, all, n)) {
        free(all);
        return 0;
    }
    *ret = all;
    *ret_count = n;
    return 0;
}

static void add_quoted(struct ckpt_buf *out, const char *text, size_t len)
{
    ckpt_buf_addc(out, '\'');
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\'' || text[i] == '\\')
            ckpt_buf_addc(out, '\\');
        ckpt_buf_addc(out, text[i]);
    }
    ckpt_buf_addc(out, '\'');
}

/* The keys as Python prints a tuple of strings: ('a',), ('a', 'b'). */
static void add_label(const struct maker *m, const uint32_t *path, unsigned n, struct ckpt_buf *out)
{
    ckpt_buf_addc(out, '(');
    for (unsigned i = n; i-- > 0;) {
        size_t len;
        const char *key = ckpt_tree_text(m->tree, m->tree->nodes[path[i]].key, &len);
        add_quoted(out, key, len);
        if (i)
            ckpt_buf_adds(out, ", ");
        else if (n == 1)
            ckpt_buf_addc(out, ',');
    }
    ckpt_buf_addc(out, ')');
}

static void add_key_metadata(const struct maker *m, const uint32_t *path, unsigned n, struct ckpt_buf *out)
{
    for (unsigned i = n; i-- > 0;) {
        const struct ckpt_node *node = &m->tree->nodes[path[i]];
        size_t len;
        const char *key = ckpt_tree_text(m->tree, node->key, &len);
        bool in_sequence = m->fates[node->parent];
        ckpt_buf_adds(out, "{\"key\":");
        ckpt_buf_add_json_string(out, key, len);
        ckpt_buf_addf(out, ",\"key_type\":%d}%s", in_sequence ? 1 : 2, i ? "," : "");
    }
}

static int add_metadata_entry(struct maker *m, struct ckpt_rendering *out, uint32_t node, const char *type, bool skip)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = ckpt_orbax_maker_path(m, node, path);
    CKPT_AUTOBUF struct ckpt_buf label = CKPT_BUF_INIT;
    struct ckpt_buf *text = &out->text;
    add_label(m, path, n, &label);
    if (ckpt_buf_error(&label))
        return ckpt_orbax_maker_no_memory(m);
    if (ckpt_rendering_text_size(out) > sizeof "{\"tree_metadata\":{")
        ckpt_buf_addc(text, ',');
    ckpt_buf_add_json_string(text, (char *)label.data, label.len);
    ckpt_buf_adds(text, ":{\"key_metadata\":[");
    add_key_metadata(m, path, n, text);
    ckpt_buf_addf(text, "],\"value_metadata\":{\"value_type\":\"%s\",\"skip_deserialize\":%s}}", type,
                  skip ? "true" : "false");
    ckpt_rendering_flush(out);
    return ckpt_buf_error(text) ? ckpt_orbax_maker_no_memory(m) : 0;
}

static int add_metadata_dir(struct maker *m, struct ckpt_rendering *out, uint32_t dir);

/* *some: something was written. */
static int add_metadata_node(struct maker *m, struct ckpt_rendering *out, uint32_t node, bool *some)
{
    static const struct {
        const char *type;
        bool skip;
    } types[] = {[ARRAY] = {"np.ndarray", false},
                 [KEY_ARRAY] = {"jax.Array", false},
                 [SCALAR] = {"scalar", false},
                 [STRING] = {"string", false},
                 [NONE] = {"None", true}};
    if (m->tree->nodes[node].kind == CKPT_NODE_DIR) {
        *some = true;
        return add_metadata_dir(m, out, node);
    }
    unsigned fate = m->fates[node];
    if (fate == OUT)
        return 0;
    *some = true;
    return add_metadata_entry(m, out, node, types[fate].type, types[fate].skip);
}

static int add_metadata_dir(struct maker *m, struct ckpt_rendering *out, uint32_t dir)
{
    const struct ckpt_node *nodes = m->tree->nodes;
    uint32_t n;
    bool some = false;
    CKPT_AUTOFREE uint32_t *order = NULL;
    int r = ckpt_orbax_text_sequence(m, dir, &order, &n);
    if (r < 0)
        return r;
    m->fates[dir] = order != NULL;
    for (uint32_t i = 0; i < n && r == 0; i++)
        r = add_metadata_node(m, out, order[i], &some);
    for (uint32_t at = nodes[dir].first; !order && at != CKPT_NO_NODE && r == 0; at = nodes[at].next)
        r = add_metadata_node(m, out, at, &some);
    if (r < 0 || some)
        return r;
    const char *empty = "Dict";
    if (order)
        empty = nodes[dir].container == CKPT_LIST ? "List" : "Tuple";
    return add_metadata_entry(m, out, dir, empty, true);
}

/* The user's, which Orbax may keep with the tree and with the step. */
static void add_own_metadata(const struct maker *m, struct ckpt_rendering *out, const char *none)
{
    const char *own = m->tree->metadata;
    ckpt_buf_adds(&out->text, own && *own == '{' ? own : none);
}

int ckpt_orbax_text_metadata(struct maker *m, struct ckpt_rendering *out)
{
    ckpt_buf_adds(&out->text, "{\"tree_metadata\":{");
    int r = add_metadata_dir(m, out, m->top);
    ckpt_buf_addf(
        &out->text,
        "},\"use_ocdbt\":%s,\"use_zarr3\":false,\"store_array_data_equal_to_fill_value\":true,\"custom_metadata\":",
        m->out->part_count ? "true" : "false");
    add_own_metadata(m, out, "null");
    ckpt_buf_addc(&out->text, '}');
    return r;
}

/* --- _strings.json --- */

/* A slash ends a part, so it comes before all else. */
static unsigned token_rank(uint8_t c)
{
    return c == '/' ? 0 : c;
}

/* By the parts of their names between slashes. */
static int by_tokens(const void *pa, const void *pb, void *arg)
{
    const struct maker *m = arg;
    const struct string *a = pa, *b = pb;
    const uint8_t *x = m->names.data + a->name, *y = m->names.data + b->name;
    for (uint32_t i = 0; i < CKPT_MIN(a->name_len, b->name_len); i++)
        if (x[i] != y[i])
            return token_rank(x[i]) < token_rank(y[i]) ? -1 : 1;
    if (a->name_len != b->name_len)
        return a->name_len < b->name_len ? -1 : 1;
    return (a->node > b->node) - (a->node < b->node);
}

/* A part of a JSON pointer as the member's name that it means. */
static void add_token(struct ckpt_buf *out, const char *text, size_t len)
{
    struct ckpt_buf plain = CKPT_BUF_INIT;
    for (size_t i = 0; i < len; i++)
        if (text[i] == '~')
            ckpt_buf_addc(&plain, text[++i] == '1' ? '/' : '~');
        else
            ckpt_buf_addc(&plain, text[i]);
    ckpt_buf_add_json_string(out, plain.data ? (char *)plain.data : "", plain.len);
    if (ckpt_buf_error(&plain))
        out->error = ckpt_buf_error(&plain);
    ckpt_buf_clear(&plain);
}

/* The name of s is that of another string, or would be a member of it. */
static bool is_within(const struct maker *m, const struct string *s, const struct string *other)
{
    const uint8_t *name = m->names.data + s->name, *other_name = m->names.data + other->name;
    uint32_t len = other->name_len;
    if (len > s->name_len || memcmp(other_name, name, len))
        return false;
    return len == s->name_len || name[len] == '/';
}

/* A string would have to be an object too (a, a/b), or two have one name: the first is kept. */
void ckpt_orbax_text_drop_strings(struct maker *m)
{
    size_t kept = 0;
    if (m->string_count)
        qsort_r(m->strings, m->string_count, sizeof *m->strings, by_tokens, m);
    for (size_t i = 0; i < m->string_count; i++) {
        const struct string *s = &m->strings[i], *last = kept ? &m->strings[kept - 1] : NULL;
        if (m->fates[s->node] == OUT)
            continue;
        if (last && is_within(m, s, last))
            ckpt_orbax_maker_tell(m, s->node, "another string has the same joined name, or a part of it");
        else
            m->strings[kept++] = *s;
    }
    m->string_count = kept;
}

/* The objects that two names are in together: their number, and the length of what names them. */
static unsigned common_objects(const char *a, size_t a_len, const char *b, size_t b_len, size_t *ret_len)
{
    unsigned count = 0;
    *ret_len = 0;
    for (size_t k = 0; k < CKPT_MIN(a_len, b_len) && a[k] == b[k]; k++)
        if (a[k] == '/') {
            count++;
            *ret_len = k + 1;
        }
    return count;
}

/* Opens the objects that a name is in, from `begin` on, and adds the member's own name. Returns their number. */
static unsigned open_objects(struct ckpt_buf *text, const char *name, size_t len, size_t begin)
{
    unsigned count = 0;
    for (;;) {
        const char *slash = memchr(name + begin, '/', len - begin);
        if (!slash)
            break;
        add_token(text, name + begin, (size_t)(slash - name) - begin);
        ckpt_buf_adds(text, ":{");
        begin = (size_t)(slash - name) + 1;
        count++;
    }
    add_token(text, name + begin, len - begin);
    return count;
}

static void close_objects(struct ckpt_buf *text, unsigned count)
{
    while (count--)
        ckpt_buf_addc(text, '}');
}

/* In the order of their names, so that an object is open as long as its members come. */
int ckpt_orbax_text_strings(struct maker *m, struct ckpt_rendering *out)
{
    struct ckpt_buf *text = &out->text;
    const char *last = "";
    size_t last_len = 0;
    unsigned depth = 0;
    ckpt_buf_addc(text, '{');
    for (size_t i = 0; i < m->string_count; i++) {
        const struct string *s = &m->strings[i];
        const char *name = (char *)m->names.data + s->name;
        size_t begin;
        unsigned common = common_objects(name, s->name_len, last, last_len, &begin);
        close_objects(text, depth - common);
        if (i)
            ckpt_buf_addc(text, ',');
        depth = common + open_objects(text, name, s->name_len, begin);
        ckpt_buf_addc(text, ':');
        int r = ckpt_tree_value(m->tree, s->node, text, NULL, m->err);
        if (r < 0)
            return r;
        last = name;
        last_len = s->name_len;
        ckpt_rendering_flush(out);
    }
    close_objects(text, depth + 1);
    return 0;
}

/* --- what Orbax wants of typed random keys --- */

int ckpt_orbax_text_shardings(struct maker *m, struct ckpt_rendering *out)
{
    const char *before = "{";
    for (size_t i = 0; i < m->out->part_count; i++) {
        const struct part *p = &m->out->parts[i];
        if (m->fates[p->node] != KEY_ARRAY)
            continue;
        ckpt_buf_addf(&out->text, "%s\"", before);
        ckpt_buf_add_base64url(&out->text, m->names.data + p->name, p->name_len);
        ckpt_buf_adds(
            &out->text,
            "\":\"{\\\"sharding_type\\\": \\\"SingleDeviceSharding\\\", \\\"device_str\\\": \\\"cpu:0\\\"}\"");
        before = ",";
        ckpt_rendering_flush(out);
    }
    ckpt_buf_addc(&out->text, '}');
    return 0;
}

static void add_shape(struct ckpt_buf *out, const char *name, const struct ckpt_array *a)
{
    ckpt_buf_addf(out, ",\"%s\":[", name);
    for (unsigned d = 0; d < a->ndim; d++)
        ckpt_buf_addf(out, "%s%llu", d ? "," : "", (unsigned long long)a->shape[d]);
    ckpt_buf_addc(out, ']');
}

static int add_array_metadata(struct maker *m, const struct part *p, struct ckpt_buf *text)
{
    CKPT_AUTOBUF struct ckpt_buf impl = CKPT_BUF_INIT;
    CKPT_AUTOARRAY struct ckpt_array *a = NULL;
    int r = ckpt_orbax_maker_layout(m, p, &a);
    if (r < 0)
        return r;
    ckpt_orbax_maker_key_impl(m, p->node, a, &impl);
    ckpt_buf_adds(text, "{\"array_metadata\":{\"param_name\":");
    ckpt_buf_add_json_string(text, (char *)m->names.data + p->name, p->name_len);
    add_shape(text, "write_shape", a);
    add_shape(text, "chunk_shape", a);
    ckpt_buf_adds(text, ",\"ext_metadata\":{\"random_key_impl\":");
    ckpt_buf_add_json_string(text, impl.data ? (char *)impl.data : "", impl.len);
    ckpt_buf_adds(text, "}}}");
    return 0;
}

int ckpt_orbax_text_array_metadatas(struct maker *m, struct ckpt_rendering *out)
{
    const char *before = "{\"array_metadatas\":[";
    for (size_t i = 0; i < m->out->part_count; i++) {
        const struct part *p = &m->out->parts[i];
        if (m->fates[p->node] != KEY_ARRAY)
            continue;
        ckpt_buf_adds(&out->text, before);
        int r = add_array_metadata(m, p, &out->text);
        if (r < 0)
            return r;
        before = ",";
        ckpt_rendering_flush(out);
    }
    ckpt_buf_adds(&out->text, "]}");
    return 0;
}

/* --- the step's own --- */

int ckpt_orbax_text_checkpoint_metadata(struct maker *m, struct ckpt_rendering *out)
{
    ckpt_buf_addf(&out->text,
                  "{\"item_handlers\":\"" HANDLER
                  "\",\"metrics\":{},\"performance_metrics\":{},\"init_timestamp_nsecs\":%lld,"
                  "\"commit_timestamp_nsecs\":%lld,\"custom_metadata\":",
                  (long long)m->time_ns, (long long)m->time_ns);
    add_own_metadata(m, out, "{}");
    ckpt_buf_addc(&out->text, '}');
    return 0;
}

int ckpt_orbax_text_success(struct maker *m, struct ckpt_rendering *out)
{
    (void)m;
    ckpt_buf_adds(&out->text, "Checkpoint commit was successful");
    return 0;
}
