# shellcheck shell=sh disable=SC2034 # the variables are for the script that reads this
#
# Reading this node's decision; for `. decision.sh`. It is believed as `toolkit-agent wait` believes
# it: a regular file of root's that nobody else can write, small, with nothing but KEY=value in it,
# written since this boot. The directory is root's alone too, so nobody else can exchange the file.

file=${TOOLKIT_DECISION_FILE:-/host/run/nvidia/validations/.toolkit-ctr-ready}
directory=$(dirname "$file")
boot=$(cat /proc/sys/kernel/random/boot_id)
me=$(id -u)
limit=65536 # bytes
LC_ALL=C    # a-z are 26 letters

# Read the decision into variables that start with new_. False where there is none, or none that can
# be believed: `why` says what is wrong.
read_decision() {
    new_hash='' new_strategy='' new_prefix='' new_hook='' new_driver_root='' new_dev_root=''
    new_text='' version='' written=''
    why='it is not there yet'
    [ -e "$file" ] || [ -L "$file" ] || return 1
    why='it is a link, or no regular file' # opening a pipe would take for ever
    [ -f "$file" ] && [ ! -L "$file" ] || return 1
    why='it cannot be opened'
    { parse_opened 3<"$file"; } 2>/dev/null || return 1
    why="it is of version ${version:-none}, not 1"
    [ "$version" = 1 ] || return 1
    why='it was written before this boot'
    [ "$written" = "$boot" ] || return 1
    why='it has no strategy in it'
    [ -n "$new_hash" ] && [ -n "$new_strategy" ]
}

# Judge and read descriptor 3: whatever becomes of the name, it stays the same file. The judge is the
# end of a pipe, not a command substitution: while bash waits for one of those it can lose a signal.
parse_opened() {
    stat -L -c '%u %a %s' "$directory" /proc/self/fd/3 | judge
    case $? in
        0) ;;
        2) why='its directory is not root'\''s, or others can write it' ;;
        3) why='it is not root'\''s, or others can write it' ;;
        4) why="it is empty, or larger than $limit bytes" ;;
        *) why='it has a line that is not KEY=value' ;;
    esac
    [ "$why" = 'it cannot be opened' ] || return 1
    while IFS= read -r line <&4 || [ -n "$line" ]; do
        parse_line || return 1
    done 4</proc/self/fd/3
}

# Judge the file by what `stat` says, and by every line of it; which rule it breaks is the status.
judge() {
    read -r owner mode size
    is_root_s || return 2
    read -r owner mode size
    [ -f /proc/self/fd/3 ] && is_root_s || return 3
    [ "$size" -gt 0 ] && [ "$size" -le "$limit" ] || return 4
    count=0
    while IFS= read -r line <&3 || [ -n "$line" ]; do
        parse_line || return 5
        count=$((count + ${#line} + 1))
        [ "$count" -le $((size + 1)) ] || return 5
    done
    [ "$count" -ge "$size" ] || return 5 # `read` leaves out zero bytes
}

is_root_s() {
    case 00$mode in *[2367]? | *[2367]) return 1 ;; esac
    [ "$owner" = 0 ] || [ "$owner" = "$me" ]
}

parse_line() {
    key=${line%%=*} value=${line#*=}
    case $line in *=*) ;; *) return 1 ;; esac
    case $key in '' | [0-9]* | *[!A-Z0-9_]*) return 1 ;; esac
    case $value in *[!A-Za-z0-9_./:,@%+=-]*) return 1 ;; esac
    case $key in
        TOOLKIT_STATUS_VERSION) version=$value ;;
        TOOLKIT_BOOT_ID) written=$value ;;
        TOOLKIT_CONFIG_HASH) new_hash=$value ;;
        DEVICE_LIST_STRATEGY) new_strategy=$value ;;
        CDI_ANNOTATION_PREFIX) new_prefix=$value ;;
        NVIDIA_CDI_HOOK_PATH) new_hook=$value ;;
        NVIDIA_DRIVER_ROOT) new_driver_root=$value ;;
        NVIDIA_DEV_ROOT) new_dev_root=$value ;;
    esac
    new_text="$new_text$line
"
}

# Say what is waited for, at the first look and at every $1-th.
looks=0
say_waiting() {
    if [ $((looks % $1)) -eq 0 ]; then
        echo "${0##*/}: waiting for the decision in $file: $why" >&2
    fi
    looks=$((looks + 1))
}
