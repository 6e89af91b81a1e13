/* SPDX-License-Identifier: Apache-2.0 */
/* The files of an Orbax layout that are text: what the tree is, its strings, and what belongs to the step. */
#include "core/view/orbax_private.h"

#include "core/base/util.h"
#include "core/io/json.h"

#include <stdio.h>

#define HANDLER "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"

/* --- _METADATA --- */

uint32_t *ckpt_orbax_text_sequence(const struct maker *m, uint32_t dir, uint32_t *ret_count)
{
    const struct ckpt_node *nodes = m->tree->nodes;
    uint32_t n = 0;
    *ret_count = 0;
    if (nodes[dir].container != CKPT_LIST && nodes[dir].container != CKPT_TUPLE)
        return NULL;
    for (uint32_t at = nodes[dir].first; at != CKPT_NO_NODE; at = nodes[at].next)
        n++;
    uint32_t *all = malloc((n + (size_t)1) * sizeof *all);
    for (uint32_t i = 0; all && i < n; i++)
        all[i] = CKPT_NO_NODE;
    for (uint32_t at = nodes[dir].first; all && at != CKPT_NO_NODE; at = nodes[at].next) {
        size_t len;
        const char *key = ckpt_tree_text(m->tree, nodes[at].key, &len);
        uint64_t index = 0;
        bool good = len && len < 11 && (*key != '0' || len == 1) &&
                    (nodes[at].kind == CKPT_NODE_DIR || m->fates[at] != OUT);
        for (size_t i = 0; i < len && good; i++) {
            good = key[i] >= '0' && key[i] <= '9';
            index = index * 10 + (uint64_t)(key[i] - '0');
        }
        if (!good || index >= n || all[index] != CKPT_NO_NODE) {
            free(all);
            return NULL;
        }
        all[index] = at;
    }
    *ret_count = n;
    return all;
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

static int add_metadata_entry(struct maker *m, struct ckpt_rendering *out, uint32_t node, const char *type, bool skip)
{
    uint32_t path[CKPT_MAX_DEPTH];
    unsigned n = ckpt_orbax_maker_path(m, node, path);
    struct ckpt_buf label = CKPT_BUF_INIT, *text = &out->text;
    size_t len;
    ckpt_buf_addc(&label, '(');
    for (unsigned i = n; i-- > 0;) {
        const char *key = ckpt_tree_text(m->tree, m->tree->nodes[path[i]].key, &len);
        add_quoted(&label, key, len);
        ckpt_buf_adds(&label, i ? ", " : n == 1 ? "," : "");
    }
    ckpt_buf_addc(&label, ')');
    int r = ckpt_buf_error(&label);
    if (r == 0) {
        if (ckpt_rendering_text_size(out) > sizeof "{\"tree_metadata\":{")
            ckpt_buf_addc(text, ',');
        ckpt_buf_add_json_string(text, (char *)label.data, label.len);
        ckpt_buf_adds(text, ":{\"key_metadata\":[");
    }
    for (unsigned i = n; r == 0 && i-- > 0;) {
        const char *key = ckpt_tree_text(m->tree, m->tree->nodes[path[i]].key, &len);
        ckpt_buf_adds(text, "{\"key\":");
        ckpt_buf_add_json_string(text, key, len);
        ckpt_buf_addf(text, ",\"key_type\":%d}%s", m->fates[m->tree->nodes[path[i]].parent] ? 1 : 2, i ? "," : "");
    }
    if (r == 0)
        ckpt_buf_addf(text, "],\"value_metadata\":{\"value_type\":\"%s\",\"skip_deserialize\":%s}}", type,
                      skip ? "true" : "false");
    ckpt_buf_clear(&label);
    ckpt_rendering_flush(out);
    return r < 0 || ckpt_buf_error(text) ? ckpt_orbax_maker_no_memory(m) : 0;
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
    int r = 0;
    CKPT_AUTOFREE uint32_t *order = ckpt_orbax_text_sequence(m, dir, &n);
    m->fates[dir] = order != NULL;
    for (uint32_t i = 0; i < n && r == 0; i++)
        r = add_metadata_node(m, out, order[i], &some);
    for (uint32_t at = nodes[dir].first; !order && at != CKPT_NO_NODE && r == 0; at = nodes[at].next)
        r = add_metadata_node(m, out, at, &some);
    if (r == 0 && !some)
        r = add_metadata_entry(m, out, dir,
                               !order                              ? "Dict"
                               : nodes[dir].container == CKPT_LIST ? "List"
                                                                   : "Tuple",
                               true);
    return r;
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

static unsigned rank(uint8_t c)
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
            return rank(x[i]) < rank(y[i]) ? -1 : 1;
    if (a->name_len != b->name_len)
        return a->name_len < b->name_len ? -1 : 1;
    return a->node < b->node ? -1 : a->node > b->node;
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

/* A string would have to be an object too (a, a/b), or two have one name: the first is kept. */
void ckpt_orbax_text_drop_strings(struct maker *m)
{
    size_t kept = 0;
    if (m->string_count)
        qsort_r(m->strings, m->string_count, sizeof *m->strings, by_tokens, m);
    for (size_t i = 0; i < m->string_count; i++) {
        const struct string *s = &m->strings[i], *last = kept ? &m->strings[kept - 1] : NULL;
        const uint8_t *name = m->names.data + s->name;
        if (m->fates[s->node] == OUT)
            continue;
        if (last && last->name_len <= s->name_len && !memcmp(m->names.data + last->name, name, last->name_len) &&
            (last->name_len == s->name_len || name[last->name_len] == '/'))
            ckpt_orbax_maker_tell(m, s->node, "another string has the same joined name, or a part of it");
        else
            m->strings[kept++] = *s;
    }
    m->string_count = kept;
}

int ckpt_orbax_text_strings(struct maker *m, struct ckpt_rendering *out)
{
    struct ckpt_buf *text = &out->text;
    const char *last = NULL;
    size_t last_len = 0;
    unsigned depth = 0;
    int r = 0;
    ckpt_buf_addc(text, '{');
    for (size_t i = 0; i < m->string_count && r == 0; i++) {
        const struct string *s = &m->strings[i];
        const char *name = (char *)m->names.data + s->name;
        unsigned common = 0;
        size_t begin = 0; /* behind the objects that this one is in together with the last */
        for (size_t k = 0; last && k < CKPT_MIN(last_len, (size_t)s->name_len) && name[k] == last[k]; k++)
            if (name[k] == '/') {
                common++;
                begin = k + 1;
            }
        for (; depth > common; depth--)
            ckpt_buf_addc(text, '}');
        if (i)
            ckpt_buf_addc(text, ',');
        for (const char *slash; (slash = memchr(name + begin, '/', s->name_len - begin));
             begin = (size_t)(slash + 1 - name), depth++) {
            add_token(text, name + begin, (size_t)(slash - name) - begin);
            ckpt_buf_adds(text, ":{");
        }
        add_token(text, name + begin, s->name_len - begin);
        ckpt_buf_addc(text, ':');
        r = ckpt_tree_value(m->tree, s->node, text, NULL, m->err);
        last = name;
        last_len = s->name_len;
        ckpt_rendering_flush(out);
    }
    for (depth++; depth; depth--)
        ckpt_buf_addc(text, '}');
    return r;
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

int ckpt_orbax_text_array_metadatas(struct maker *m, struct ckpt_rendering *out)
{
    struct ckpt_buf impl = CKPT_BUF_INIT, *text = &out->text;
    const char *before = "{\"array_metadatas\":[";
    int r = 0;
    for (size_t i = 0; i < m->out->part_count && r == 0; i++) {
        const struct part *p = &m->out->parts[i];
        struct ckpt_array *a;
        if (m->fates[p->node] != KEY_ARRAY || (r = ckpt_orbax_maker_layout(m, p, &a)) < 0)
            continue;
        ckpt_orbax_maker_key_impl(m, p->node, a, &impl);
        ckpt_buf_addf(text, "%s{\"array_metadata\":{\"param_name\":", before);
        ckpt_buf_add_json_string(text, (char *)m->names.data + p->name, p->name_len);
        add_shape(text, "write_shape", a);
        add_shape(text, "chunk_shape", a);
        ckpt_buf_adds(text, ",\"ext_metadata\":{\"random_key_impl\":");
        ckpt_buf_add_json_string(text, impl.data ? (char *)impl.data : "", impl.len);
        ckpt_buf_adds(text, "}}}");
        before = ",";
        ckpt_array_unref(a);
        ckpt_rendering_flush(out);
    }
    ckpt_buf_adds(text, "]}");
    ckpt_buf_clear(&impl);
    return r;
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
