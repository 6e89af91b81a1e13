/* SPDX-License-Identifier: Apache-2.0 */
/* The commands, each an `int main` of its own that returns an enum fs_exit. */
#ifndef FS_COMMANDS_COMMANDS_H
#define FS_COMMANDS_COMMANDS_H

#include "fs/fs.h"

int fs_mount_main(int argc, char **argv);
int fs_umount_main(int argc, char **argv);
int fs_info_main(int argc, char **argv);
int fs_ls_main(int argc, char **argv);
int fs_cat_main(int argc, char **argv);
int fs_cp_main(int argc, char **argv);
int fs_verify_main(int argc, char **argv);
int fs_diff_main(int argc, char **argv);
int fs_wait_main(int argc, char **argv);
int fs_init_main(int argc, char **argv);
int fs_config_main(int argc, char **argv);
int fs_import_main(int argc, char **argv);
int fs_export_main(int argc, char **argv);
int fs_prune_main(int argc, char **argv);
int fs_gc_main(int argc, char **argv);

#endif
