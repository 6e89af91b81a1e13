# SPDX-License-Identifier: Apache-2.0
# Completion of ckptfs for bash: commands, options, -o options, settings, files, paths inside of a source, and what is mounted.
# Commands and options are asked from the program itself.
# shellcheck shell=bash disable=SC2046,SC2088,SC2207 # words are to be split, and ~ is taken apart here

# What is typed of the command line, as words: cooked without quotes in $words, and in $raw the last one as it stands.
_ckptfs_split() {
    local line=${COMP_LINE:0:COMP_POINT} word='' quote='' begun='' char i start=0
    words=()
    for ((i = 0; i < ${#line}; i++)); do
        char=${line:i:1}
        case $quote$char in
        \\) ((i += 1)); word+=${line:i:1} begun=1 ;;
        \"\\) case ${line:i+1:1} in [\"\\\$\`]) ((i += 1)) ;; esac; word+=${line:i:1} ;;
        \' | \") quote=$char begun=1 ;;
        \'\' | \"\") quote='' ;;
        [$' \t'])
            [ -z "$begun$word" ] || words+=("$word")
            word='' begun='' start=$((i + 1))
            ;;
        *) word+=$char ;;
        esac
    done
    words+=("$word")
    raw=${line:start}
}

# The first column of a command's --help, where it is indented by so many blanks: "--after=N", "-R, --recursive".
_ckptfs_help() {
    "$program" ${1:+"$1"} --help 2>/dev/null | sed -nE "s/^ {$2}([^ ].*)/\1/; t found; d; :found s/ {2,}.*//; s/, /\n/g; p"
}

_ckptfs_flags() {
    _ckptfs_help "$1" 2 | sed -nE 's/^(--?[A-Za-z][A-Za-z-]*)(=?).*/\1\2/p' | uniq
    echo --help
}

_ckptfs_formats() {
    _ckptfs_help export 2 | sed -n 's/^--format=//p'
}

# $cur is a part of a list with commas: names that end in = go on.
_ckptfs_mount_options() {
    local before=''
    case $cur in *,*) before=${cur%,*}, ;; esac
    case ${cur##*,} in
    codec=*) set -- codec={auto,none,lz4,blosc} ;;
    commit=*) set -- commit={explicit,auto} ;;
    *=*) return ;;
    *) set -- $(_ckptfs_help mount 5 | tr ' ' '\n' | sed -E 's/=.*/=/') nofail noauto user _netdev x-systemd.automount ;;
    esac
    COMPREPLY=($(compgen -P "$before" -W "$*" -- "${cur##*,}"))
}

_ckptfs_settings() {
    case $cur in
    codec=*) set -- codec={auto,none,lz4,blosc} ;;
    best_mode=*) set -- best_mode={min,max} ;;
    *=*) return ;;
    *) set -- $(_ckptfs_help config 2 | sed -nE 's/^([a-z_]+=).*/\1/p') ;;
    esac
    COMPREPLY=($(compgen -W "$*" -- "$cur"))
}

# Names in a directory of the source. If one is left, and is a directory (a file is listed as itself), it goes on.
_ckptfs_paths() {
    local source=$1 dir='' name
    case $source in '~/'*) source=$HOME/${source#'~/'} ;; esac
    case $cur in */*) dir=${cur%/*}/ ;; esac
    while IFS= read -r name; do
        case $dir$name in "$cur"*) COMPREPLY+=("$dir$name") ;; esac
    done < <("$program" ls $(case ${cur##*/} in .*) echo -a ;; esac) -- "$source" "$dir" 2>/dev/null)
    compopt -o filenames 2>/dev/null
    if [ ${#COMPREPLY[@]} = 1 ] && name=$("$program" ls -- "$source" "./${COMPREPLY[0]}" 2>/dev/null) && [ "$name" != "./${COMPREPLY[0]}" ]; then
        COMPREPLY[0]+=/
        compopt -o nospace 2>/dev/null
    fi
}

_ckptfs_mounts() {
    local top rest
    while read -r _ _ _ _ top rest; do
        case $rest in *' - fuse.ckptfs '*) printf -v top %b "${top//\\/\\0}" && case $top in "$cur"*) COMPREPLY+=("$top") ;; esac ;; esac
    done </proc/self/mountinfo
    compopt -o filenames 2>/dev/null
}

_ckptfs() {
    local words raw cur program command flags places=() i
    COMPREPLY=()
    _ckptfs_split
    program=${words[0]}
    case $program in '~/'*) program=$HOME/${program#'~/'} ;; esac
    cur=${words[-1]} command=${words[1]}
    if [ ${#words[@]} = 2 ]; then
        COMPREPLY=($(compgen -W "$(_ckptfs_help '' 2 | sed 's/ .*//') --help --version" -- "$cur"))
        return
    fi
    case " $(_ckptfs_help '' 2 | tr '\n' ' ')" in *" $command "*) ;; *) command=mount places=("$command") ;; esac
    flags=$(_ckptfs_flags "$command")

    # What comes before: options take their value along.
    for ((i = 2; i < ${#words[@]} - 1; i++)); do
        case ${words[i]} in
        -o) [ "$command" = mount ] && ((i++)) ;;
        --*=*) ;;
        -?*) case $'\n'$flags$'\n' in *$'\n'"${words[i]}="$'\n'*) ((i++)) ;; esac ;;
        *) places+=("${words[i]}") ;;
        esac
    done
    if ((i >= ${#words[@]})); then # the value of the last option
        case $command${words[-2]} in
        mount-o) _ckptfs_mount_options ;;
        export--format) COMPREPLY=($(compgen -W "$(_ckptfs_formats)" -- "$cur")) ;;
        esac
    else
        case $command${#places[@]}$cur in
        export*--format=*) COMPREPLY=($(compgen -P --format= -W "$(_ckptfs_formats)" -- "${cur#*=}")) ;;
        mount[0-9]-o?*) ;;
        *[0-9]-*) COMPREPLY=($(compgen -W "$flags" -- "$cur")) ;;
        umount0*) _ckptfs_mounts ;;
        ls1* | cp1* | verify1* | cat[1-9]*) _ckptfs_paths "${places[0]}" ;;
        config[1-9]*) _ckptfs_settings ;;
        mount1* | init0* | config0* | prune0* | gc0*) compopt -o dirnames 2>/dev/null ;;
        *) compopt -o default 2>/dev/null ;; # files
        esac
    fi
    [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace 2>/dev/null

    # bash replaces what follows the last of the characters that break words, unless it is quoted.
    case $raw in [\"\']*) return ;; esac
    local broken=${raw##*["=:@"]}
    [ "$broken" = "$raw" ] || COMPREPLY=("${COMPREPLY[@]#"${cur%"$broken"}"}")
}

complete -F _ckptfs ckptfs
