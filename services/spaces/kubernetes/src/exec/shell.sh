# Begins a terminal's shell. $1: the terminal's id, $2: the pid of its keeper,
# $3 and $4: columns and lines.
# Without its keeper nobody would end it.
kill -s 0 "$2" 2>/dev/null || exit 126
stty cols "$3" rows "$4" iutf8 2>/dev/null || stty cols "$3" rows "$4" 2>/dev/null
export PODYARD_TERMINAL="$1" TERM=xterm-256color
case "${LC_ALL:-${LC_CTYPE:-$LANG}}" in
    *[Uu][Tt][Ff]-8* | *[Uu][Tt][Ff]8*) ;;
    *) unset LC_ALL; export LC_CTYPE=C.UTF-8 ;;
esac
if command -v bash >/dev/null 2>&1; then
    SHELL=$(command -v bash)
else
    SHELL=/bin/sh
fi
export SHELL
exec "$SHELL"
