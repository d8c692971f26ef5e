# Ends a terminal in this container once nobody holds it any more.
# $1: the terminal's id, which its processes bear; $2: seconds of patience.
# Needs nothing but sh and /proc.
id=$1 patience=$2 own=$$

# Prints the pids that are the terminal's: that bear its id in their
# environment or arguments, or are in a session of one that does.
members() {
    sessions=' ' found='' others=''
    for dir in /proc/[0-9]*; do
        pid=${dir#/proc/}
        [ "$pid" = "$own" ] && continue
        stat=''
        { IFS= read -r stat < "$dir/stat"; } 2>/dev/null || continue
        # The name before the bracket may hold anything. Then: state parent group session.
        set -- ${stat##*) }
        case $1 in Z|X) continue ;; esac
        # What was there before the keeper is not the terminal's: most of what is read is spared.
        [ "${20:-0}" -lt "$own_start" ] && continue
        session=$4
        [ "$2" = "$own" ] && [ "$session" = "$own_session" ] && continue
        if bears "$dir/environ" || bears "$dir/cmdline"; then
            found="$found $pid"
            # A session of its own keeper or of the container's program is not the terminal's.
            [ "$session" != 0 ] && [ "$session" != 1 ] && [ "$session" != "$own_session" ] &&
                sessions="$sessions$session "
        else
            others="$others $pid:$session"
        fi
    done
    for other in $others; do
        case $sessions in *" ${other#*:} "*) found="$found ${other%:*}" ;; esac
    done
    echo "$found"
}

# Whether a file of NUL-separated texts has the id in it.
bears() {
    {
        while IFS= read -r line || [ -n "$line" ]; do
            case $line in *"$id"*) return 0 ;; esac
        done < "$1"
    } 2>/dev/null
    return 1
}

own_session=0 own_start=0
{ IFS= read -r stat < /proc/self/stat; } 2>/dev/null && { set -- ${stat##*) }; own_session=$4 own_start=${20:-0}; }
set -- "$id" "$patience"

end_all() {
    trap '' HUP TERM INT
    tries=0
    signal=HUP
    while [ "$tries" -lt 20 ]; do
        all=$(members)
        # Twice nobody: one may just have been about to begin.
        if [ -z "${all# }" ]; then
            [ "$signal" = NONE ] && break
            signal=NONE
        else
            [ "$signal" = NONE ] && signal=KILL
            for pid in $all; do
                kill -s "$signal" "$pid" 2>/dev/null
                [ "$signal" = HUP ] && kill -s CONT "$pid" 2>/dev/null
            done
            signal=KILL
        fi
        tries=$((tries + 1))
        sleep 0.3 2>/dev/null || sleep 1 2>/dev/null
    done
    exit 0
}

trap end_all HUP TERM INT
echo "$own"

# Some sh can wait for a line for a while only. Its result tells: beyond 128, or 142, the time was up.
if (echo x | { read -t 5 -r line && [ "$line" = x ]; }) 2>/dev/null; then
    while read -t "$patience" -r line; do
        [ "$line" = end ] && break
    done
else
    # The others are asked by a second process, which they must outlive.
    (
        waited=0
        trap 'waited=0' USR1
        while [ "$waited" -lt "$patience" ]; do
            sleep 1 || exit 0
            waited=$((waited + 1))
            kill -s 0 "$own" 2>/dev/null || exit 0
        done
        kill -s TERM "$own"
    ) >/dev/null 2>&1 </dev/null &
    watcher=$!
    while read -r line; do
        [ "$line" = end ] && break
        kill -s USR1 "$watcher" 2>/dev/null
    done
    kill "$watcher" 2>/dev/null
fi
end_all
