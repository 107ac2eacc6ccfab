#!/bin/sh
# Start the device plugin on this node's decision, and start it anew when the decision changes. When
# the driver does, end: the libraries and device nodes in this container are of the driver that was
# there when it was made, and the kubelet makes another one.
#
#     entrypoint.sh PROGRAM [ARGUMENTS...]
#
# The decision is read, never executed. For each variable that it sets, one with _OVERRIDE after its
# name wins. The host's / is mounted at HOST_ROOT_MOUNT (/host), and there the plugin finds the driver:
# by default it would look in /driver-root, which is one place for all nodes and for the pod's life.
# NVIDIA's images have busybox's sh, older ones bash.
set -u

child=''
pass() { [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null; }
trap 'stopped=1; pass TERM' TERM INT
trap 'pass HUP' HUP
stopped=0
moved=0

# shellcheck source-path=SCRIPTDIR source=decision.sh
. "$(dirname "$0")/decision.sh"
every=${TOOLKIT_DECISION_INTERVAL:-2} # seconds
host=${HOST_ROOT_MOUNT:-/host}

say() { echo "entrypoint: $*" >&2; }

# Export NAME with the override if there is one, else with the decision's value; unset it where
# neither says anything: what the manifest says is of another decision.
give() {
    eval "override=\${$1_OVERRIDE:-}"
    # shellcheck disable=SC2154 # the line above sets it
    if [ -n "$override$2" ]; then
        export "$1=${override:-$2}"
    else
        unset "$1"
    fi
}

# Export all that the decision says.
give_all() {
    give DEVICE_LIST_STRATEGY "$new_strategy"
    give CDI_ANNOTATION_PREFIX "$new_prefix"
    give NVIDIA_CDI_HOOK_PATH "$new_hook"
    give NVIDIA_DRIVER_ROOT "$new_driver_root"
    give NVIDIA_DEV_ROOT "$new_dev_root"
    seen=''
    [ -z "${NVIDIA_DRIVER_ROOT:-}" ] || seen=$host${NVIDIA_DRIVER_ROOT%/}
    give CONTAINER_DRIVER_ROOT "$seen"
    unset DRIVER_ROOT_CTR_PATH # the plugin's other name for it, which would win
}

# Can the plugin serve with this decision? With a CDI strategy and no driver it ends at once, whatever
# FAIL_ON_INIT_ERROR says. With a directory dev in the driver's root it looks for device nodes nowhere
# else, and where there are none it hands out GPUs that no CDI spec describes.
can_serve() {
    read_decision || return 1
    roots="$new_driver_root $new_dev_root"
    [ "${made_with=$roots}" = "$roots" ] || moved=1
    case ${DEVICE_LIST_STRATEGY_OVERRIDE:-$new_strategy} in *cdi-*) ;; *) return 0 ;; esac
    root=${NVIDIA_DRIVER_ROOT_OVERRIDE:-$new_driver_root}
    [ -z "${CONTAINER_DRIVER_ROOT_OVERRIDE:-}" ] || return 0
    why='it names no driver that has device nodes, and CDI needs one'
    [ -n "$root" ] || return 1
    why="the plugin takes device nodes from ${root%/}/dev alone, and there are none; if they are"
    why="$why elsewhere, remove that directory"
    has_nodes "$host${root%/}/dev"
}

has_nodes() {
    [ -d "$1" ] || return 0
    set -- "$1"/nvidia[0-9]*
    [ -e "$1" ]
}

# Sleep, but wake for a signal; the sleep is ended too.
pause() {
    sleep "$every" &
    nap=$!
    wait "$nap" 2>/dev/null || kill "$nap" 2>/dev/null
}

while :; do
    looks=0
    until can_serve; do
        [ "$stopped" = 0 ] || exit 0
        say_waiting 15 # every half a minute, where a look comes every two seconds
        pause
    done
    if [ "$moved" = 1 ]; then
        say 'the driver has changed; ending, so that the container is made anew with it'
        exit 0
    fi
    hash=$new_hash
    give_all
    [ "$stopped" = 0 ] || exit 0
    say "DEVICE_LIST_STRATEGY=$DEVICE_LIST_STRATEGY CDI_ANNOTATION_PREFIX=${CDI_ANNOTATION_PREFIX:-}" \
        "CONTAINER_DRIVER_ROOT=${CONTAINER_DRIVER_ROOT:-}"
    "$@" &
    child=$!
    [ "$stopped" = 0 ] || pass TERM # asked for before there was anybody to tell
    changed=0
    while kill -0 "$child" 2>/dev/null; do
        pause
        if [ "$stopped" = 0 ] && read_decision && [ "$new_hash" != "$hash" ]; then
            say 'the decision has changed; stopping the plugin'
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
