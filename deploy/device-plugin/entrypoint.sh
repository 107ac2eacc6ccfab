#!/bin/sh
# Start the device plugin on this node's decision, and start it anew when the decision changes.
#
#     entrypoint.sh PROGRAM [ARGUMENTS...]
#
# The decision is read, never executed. DEVICE_LIST_STRATEGY_OVERRIDE, CDI_ANNOTATION_PREFIX_OVERRIDE
# and NVIDIA_CDI_HOOK_PATH_OVERRIDE win over it. NVIDIA's images have busybox's sh, older ones bash.
set -u

file=${TOOLKIT_DECISION_FILE:-/run/nvidia/validations/.toolkit-ctr-ready}
every=${TOOLKIT_DECISION_INTERVAL:-2} # seconds
boot=$(cat /proc/sys/kernel/random/boot_id)

say() { echo "entrypoint: $*" >&2; }

# Read the decision into variables; false where there is none, or none that can be believed. An
# empty file, no file, or one from before this boot is no decision, and no change of one.
load() {
    new_hash='' new_strategy='' new_prefix='' new_hook='' version='' written=''
    [ -r "$file" ] || return 1
    while IFS= read -r line; do
        value=${line#*=}
        case $line in *=*) ;; *) return 1 ;; esac
        case $value in *[!A-Za-z0-9_./:,@%+=-]*) return 1 ;; esac
        case ${line%%=*} in
            TOOLKIT_STATUS_VERSION) version=$value ;;
            TOOLKIT_BOOT_ID) written=$value ;;
            TOOLKIT_CONFIG_HASH) new_hash=$value ;;
            DEVICE_LIST_STRATEGY) new_strategy=$value ;;
            CDI_ANNOTATION_PREFIX) new_prefix=$value ;;
            NVIDIA_CDI_HOOK_PATH) new_hook=$value ;;
        esac
    done <"$file"
    [ "$version" = 1 ] && [ "$written" = "$boot" ] && [ -n "$new_hash" ] && [ -n "$new_strategy" ]
}

# Export NAME with the override if there is one, else with the decision's value; unset it where
# neither says anything: what the manifest says is of another decision.
give() {
    if [ -n "$2" ]; then
        export "$1=$2"
    elif [ -n "$3" ]; then
        export "$1=$3"
    else
        unset "$1"
    fi
}

child=''
pass() { [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null; }
trap 'stopped=1; pass TERM' TERM INT
trap 'pass HUP' HUP
stopped=0

# Sleep, but wake for a signal; the sleep is ended too.
pause() {
    sleep "$every" &
    nap=$!
    wait "$nap" 2>/dev/null || kill "$nap" 2>/dev/null
}

until load; do
    [ "$stopped" = 0 ] || exit 0
    say "waiting for the decision in $file"
    pause
done

while :; do
    hash=$new_hash
    give DEVICE_LIST_STRATEGY "${DEVICE_LIST_STRATEGY_OVERRIDE:-}" "$new_strategy"
    give CDI_ANNOTATION_PREFIX "${CDI_ANNOTATION_PREFIX_OVERRIDE:-}" "$new_prefix"
    give NVIDIA_CDI_HOOK_PATH "${NVIDIA_CDI_HOOK_PATH_OVERRIDE:-}" "$new_hook"
    [ "$stopped" = 0 ] || exit 0
    say "DEVICE_LIST_STRATEGY=$DEVICE_LIST_STRATEGY CDI_ANNOTATION_PREFIX=${CDI_ANNOTATION_PREFIX:-}"
    "$@" &
    child=$!
    [ "$stopped" = 0 ] || pass TERM # asked for before there was anybody to tell
    changed=0
    while kill -0 "$child" 2>/dev/null; do
        pause
        if [ "$stopped" = 0 ] && load && [ "$new_hash" != "$hash" ]; then
            say 'the decision has changed; starting the plugin anew'
            changed=1
            pass TERM
            break
        fi
    done
    # A signal interrupts a wait; the plugin's own status comes when it has really ended.
    while :; do
        wait "$child"
        status=$?
        kill -0 "$child" 2>/dev/null || break
    done
    child=''
    [ "$changed" = 1 ] && [ "$stopped" = 0 ] || exit "$status"
done
