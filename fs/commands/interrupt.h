/* SPDX-License-Identifier: Apache-2.0 */
/* SIGINT and SIGTERM for commands that clear away what is half done before they end. One thread. */
#ifndef FS_COMMANDS_INTERRUPT_H
#define FS_COMMANDS_INTERRUPT_H

#include <stdbool.h>

/* From now on the first of these signals is kept until fs_interrupt_end; a second one ends the program at once. */
void fs_interrupt_begin(void);
bool fs_interrupted(void);
/* Ends the program as the signal would have, if there was one. */
void fs_interrupt_end(void);

#endif
