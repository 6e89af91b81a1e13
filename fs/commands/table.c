/* SPDX-License-Identifier: Apache-2.0 */
/* The table of commands. */
#include "fs/commands/commands.h"

#define EXIT "\nExit status: 0 fine, 1 usage, "

const struct fs_command fs_commands[] = {
    {"mount", "SOURCE MOUNTPOINT [-f] [-d] [-s] [-o OPTIONS]", "Mount a source; returns when the mount answers.",
     "  -f            stay in the foreground; log to stderr\n"
     "  -d            the same, with every request of the kernel\n"
     "  -s            one thread\n"
     "  -o OPTIONS    separated by commas:\n"
     "     ro, rw       read-only; writable, which native roots and empty directories are anyway\n"
     "     settle=S     a staged step commits by itself S seconds after the last change (2)\n"
     "     commit=explicit  it does not: rename it, or sync its directory\n"
     "     writers=N    N mounts write each step together; this one is\n"
     "     writer=K     the one with number K, from 0\n"
     "     commit_timeout=S  how long a commit waits for the others (300)\n"
     "     overwrite    renaming a step onto another one replaces that\n"
     "     passthrough  the kernel reads uncompressed leaves of a store itself: fast, and without checks (root only)\n"
     "     codec=NAME   of what is written: auto, none, lz4, blosc (as the root is configured)\n"
     "     refresh=S    look at the source again after S seconds (1)\n"
     "     flat         keep names that a format joins with dots whole\n"
     "     follow       follow links that lead out of the source\n"
     "     cache=BYTES  of decoded chunks in memory (128M)\n"
     "     uid=N gid=N  show files as theirs\n"
     "     umask=OCTAL  take these permissions away\n"
     "     allow_other  let other users in, and all the other options of FUSE\n",
     fs_mount_main},
    {"umount", "MOUNTPOINT [--lazy] [--force]", "Unmount.",
     "  --lazy, -l    at once; programs that use it keep it until they end\n"
     "  --force, -f   even if the daemon does not answer\n",
     fs_umount_main},
    {"info", "SOURCE [--fast] [--json]", "The checkpoints of a source, or what is in the one that it is.",
     "  --fast        do not open the checkpoints: names, formats and times only\n"
     "  --json        one JSON document: "
     "{\"source\",\"steps\":[{\"root\",\"name\",\"step\",\"format\",\"time\",\"latest\",\"leaves\",\n"
     "                \"containers\",\"bytes\",\"stored\",\"damaged\"}...]}; of one checkpoint "
     "{\"source\",\"format\",\"leaves\",...,\n"
     "                \"metadata\"}. A checkpoint that does not open has \"error\":{\"code\",\"message\"} in place of "
     "the numbers;\n"
     "                with pointers of Git LFS there are \"lfs_pointers\":[PATH...]\n"
     "\nBytes are those of the leaves' files as read; stored, what they take in the source. No tensor is read.\n" EXIT
     "3 the source is not reachable, 4 no checkpoint opens, 5 some do not, or have damaged leaves\n",
     fs_info_main, true},
    {"ls", "SOURCE [PATH] [-l] [-h] [-R] [-a] [--json]", "List names as a mount shows them.",
     "  -l            kind, dtype, shape, bytes, stored bytes, name\n"
     "  -h, --human-readable   with -l: bytes as 1.5 GiB\n"
     "  -R, --recursive   what is below, too\n"
     "  -a, --all     also names that begin with a point (--json has them anyway), and .ckptfs\n"
     "  --json        a list of objects: name, path, type, kind, dtype, shape, bytes, size (of the file), stored, "
     "time\n" EXIT "3 the source or the path is not there, 4 a bad checkpoint, 5 some directories do not open\n",
     fs_ls_main, true},
    {"cat", "SOURCE PATH... [--json]", "Write files and views to standard output.",
     "  --json        errors, on standard error, as one JSON object a line: "
     "{\"path\",\"error\":{\"code\",\"message\"}}\n" EXIT
     "1 a directory, 3 the source or path is not there, 4 damaged, 5 some paths failed\n",
     fs_cat_main, true},
    {"cp", "SOURCE PATH DEST [-r] [--json]", "Copy a file, view or directory out of a source.",
     "  -r, -R, --recursive   is taken and changes nothing: a directory is always copied with all that is in it\n"
     "  --json        one JSON document: "
     "{\"files\",\"bytes\",\"errors\":[{\"path\",\"error\":{\"code\",\"message\"}}...]}\n"
     "\nInto DEST if that is a directory, else as DEST. PATH \"\" or \".\" copies the contents of the source. Times "
     "are kept; a file has its\n"
     "name only when it is whole. What is damaged is told and left out, the rest is copied.\n" EXIT
     "3 the source or the path is not there, 4 damaged, 5 not all was copied, or DEST cannot be written\n",
     fs_cp_main, true},
    {"verify", "SOURCE [STEP] [--json]", "Read all of a source, or of a step or path of it, and check every checksum.",
     "  --json        one JSON document: "
     "{\"files\",\"bytes\",\"faults\":[{\"path\",\"error\":{\"code\",\"message\"}}...]}\n"
     "\nA fault is a line \"PATH: REASON\". STEP may be a step's number, whatever its name.\n" EXIT
     "3 the source or the step is not there, 4 there are faults\n",
     fs_verify_main, true},
    {"diff", "A B [--meta] [--rtol=R] [--atol=A] [--json]",
     "Compare two trees: what is missing, shapes, dtypes, values.",
     "  --meta        do not compare values\n"
     "  --rtol=R      numbers are equal if |a - b| <= A + R * |b|; without this and --atol, if their bits are\n"
     "  --atol=A      see --rtol\n"
     "  --json        one JSON document: {\"a\",\"b\",\"differences\":[{\"type\",\"path\",...}...],\"equal\"}\n"
     "\nA and B are sources, or paths that go on inside of one: run/7, run/latest/params. A difference is a line:\n"
     "  only in A: KEY    only in B: KEY    kind: KEY array value    size: FILE 10 12\n"
     "  shape: KEY (2,3) (3,3)    dtype: KEY float32 bfloat16    value: KEY 12 of 100 elements, max |d| 0.5\n" EXIT
     "3 A or B is not there, 4 damaged, 6 they differ\n",
     fs_diff_main, true},
    {"wait", "SOURCE --after=N [--timeout=S] [--interval=S] [--json]",
     "Wait for a finished step with a number above N, and print its path.",
     "  --after=N     the number of the last step that is known\n"
     "  --timeout=S   give up after S seconds\n"
     "  --interval=S  look every S seconds (0.5)\n"
     "  --json        one JSON document: {\"path\",\"root\",\"name\",\"step\",\"time\"}\n"
     "\nOf several steps the one with the lowest number is told, so that a loop sees each of them.\n" EXIT
     "1 the source is one checkpoint, 3 the source is not reachable, or no step came in time\n",
     fs_wait_main, true},
    {"init", "ROOT [--json]", "Make a directory a native root, one with a store of its own.",
     "  --json        one JSON document: {\"root\",\"id\",\"created\"}\n"
     "\nThe directory is made if it is not there. Steps of other libraries in it stay readable. Nothing happens if it "
     "is a native root already.\n" EXIT "3 it cannot be made\n",
     fs_init_main},
    {"config", "ROOT [KEY=VALUE...] [--json]", "Show the settings of a native root, or change them.",
     "  --json        one JSON document: {\"id\",\"codec\",...}\n"
     "\nKEY= without a value unsets. None is changed if one of them is wrong.\n"
     "  codec=auto        what new leaves are stored with: auto, none, lz4, blosc\n"
     "  keep_last=N       keep the last N steps\n"
     "  keep_period=N     keep steps whose number is a multiple of N\n"
     "  keep_newer=TIME   keep steps younger than this: 7d, 12h, 30m, 90s\n"
     "  best_metric=NAME  keep the best by this number in metrics.json at the top of a step\n"
     "  best_mode=min     or max\n"
     "  keep_best=N       as many of them (1)\n"
     "\nRules add up. Pinned steps and the latest are always kept; without a rule all are. They are applied after each "
     "commit, and by 'ckptfs prune'.\n" EXIT "3 not a native root, 4 its store.json is malformed or newer\n",
     fs_config_main},
    {"import", "SRC ROOT/STEP [--json]", "Copy a checkpoint into a native root, as a step.",
     "  --json        one JSON document: {\"step\",\"files\",\"bytes\"}\n"
     "\nSRC is a checkpoint of any format that can be read, a path that goes on inside of one (run/7/state), or a "
     "plain directory. STEP is a name: 7, step_7.\n"
     "The step is committed when all of it is there; else there is none.\n" EXIT
     "1 also: there is such a step; 3 SRC or ROOT is not there, 4 SRC is damaged,\n5 ROOT cannot be written\n",
     fs_import_main, true},
    {"export", "SOURCE/STEP DST [--format=FORMAT] [--json]", "Copy a checkpoint, or a part of one, to plain files.",
     "  --format=npy          arrays as .npy files, values as .json files, blobs as they are, in DST: a new or empty "
     "directory\n"
     "  --format=safetensors  one file: DST, or model.safetensors in DST where that is a directory. Names are joined "
     "with dots;\n"
     "                        numbers are tensors, other values are told in __metadata__. Blobs, and arrays of types "
     "that\n"
     "                        safetensors does not have, are left out and named\n"
     "  --format=orbax        an Orbax checkpoint in DST: a new or empty directory. Blobs, and arrays of types that "
     "Orbax does not\n"
     "                        have, are left out and named\n"
     "  --json                one JSON document: {\"files\",\"bytes\"}, and \"left_out\":[{\"path\",\"reason\"}] if "
     "anything is\n"
     "\nA DST that ends in .safetensors says its format itself.\n"
     "DST has its name when all files are whole and durable.\n" EXIT
     "1 also: DST is there; 3 the checkpoint is not there, 4 it is damaged,\n5 DST cannot be written, or something was "
     "left out\n",
     fs_export_main, true},
    {"prune", "ROOT [--dry-run] [--json]", "Delete the steps that the root's rules do not keep.",
     "  --dry-run, -n   only tell which\n"
     "  --json          one JSON document: {\"steps\",\"dry_run\"}\n"
     "\nPrints a step a line. What they took comes back by 'ckptfs gc'. See 'ckptfs config --help' for the "
     "rules.\n" EXIT "3 not a native root, 4 its store.json is malformed or newer\n",
     fs_prune_main},
    {"gc", "ROOT [--dry-run] [--trash-keep=S] [--json]", "Take away stored content that no step names.",
     "  --dry-run, -n     only tell how much\n"
     "  --trash-keep=S    delete for good what has been in the trash for S seconds (60). Readers that have opened a "
     "step which was then\n"
     "                    deleted may need what is in it\n"
     "  --json            one JSON document: "
     "{\"objects\",\"bytes\",\"purged\",\"purged_bytes\",\"kept\",\"dry_run\"}\n" EXIT
     "3 not a native root, 4 a manifest is damaged or newer; nothing is collected then\n",
     fs_gc_main},
    {0},
};
