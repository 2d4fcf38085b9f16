#!/bin/sh
# Makes one cluster of nodes that have greeted each other, once: sh form.sh PRIMARIES NODE...
#
# The first PRIMARIES nodes share the slots, and every other follows one of them. Where slots have been given out already,
# they stay where they are; a node without slots that follows nobody, such as one that came back without its data, gets
# somebody to follow. So it may run at any time, and again after it was interrupted.
#
# HOLDFAST_REDIS_ADMIN_PASSWORD  of the user admin
set -eu
export REDISCLI_AUTH="$HOLDFAST_REDIS_ADMIN_PASSWORD"
primaries=$1
shift
slots=16384

at() {
    node=$1
    shift
    redis-cli --user admin --no-auth-warning -h "$node" "$@"
}
info() { at "$1" cluster info | tr -d '\r' | sed -n "s/^$2://p"; }

for node; do
    # More, when one that has lost its data came back as another one.
    until known=$(info "$node" cluster_known_nodes 2>/dev/null) && [ "${known:-0}" -ge $# ]; do
        echo "$node does not know all $# nodes yet"
        sleep 1
    done
done

# One that has just come back empty knows the others before it knows their slots: all are asked.
formed=
for node; do
    [ "$(info "$node" cluster_slots_assigned)" != $slots ] || formed=yes
done
if [ -z "$formed" ]; then
    number=0
    for node; do
        [ $number -lt "$primaries" ] || break
        first=$((slots * number / primaries))
        number=$((number + 1))
        last=$((slots * number / primaries - 1))
        # Refused by a node that an interrupted run has served: it has these slots.
        echo "$node: slots $first to $last: $(at "$node" cluster addslotsrange $first $last)"
    done
fi

for node; do
    until [ "$(info "$node" cluster_slots_assigned)" = $slots ]; do
        sleep 1
    done
done

# Who is well, as one node sees it: id, address, flags, whom it follows, three figures, the link, and slots if it has any.
# One that came back empty is another one: who it was before stays `fail?`, and without an address, and follows nobody.
seen() { at "$1" cluster nodes | awk '$3 !~ /fail|noaddr|handshake/'; }
follow() {
    for node; do
        id=$(at "$node" cluster myid)
        if seen "$1" | grep -q "^$id .*master.* connected$"; then
            least=$(seen "$1" | awk '
                $3 ~ /master/ && NF > 8 { followers[$1] += 0 }
                $3 ~ /slave/ { followers[$4]++ }
                END { for (id in followers) print followers[id], id }' | sort -n | sed -n '1s/.* //p')
            echo "$node follows $least: $(at "$node" cluster replicate "$least")"
            # The next one reckons with it.
            until seen "$1" | grep -q "^$id .*slave $least "; do
                sleep 0.2
            done
        fi
    done
}

# Again until it is so: while nodes meet, one may be without a link for a moment.
until [ "$(info "$1" cluster_state)" = ok ] &&
    [ $(($(info "$1" cluster_size) + $(seen "$1" | grep -c slave))) = $# ]; do
    echo "not all nodes have slots or somebody to follow yet"
    follow "$@"
    sleep 1
done
# Until then a replica cannot take over.
for node; do
    while at "$node" info replication | grep -q master_link_status:down; do
        echo "$node has not copied its primary yet"
        sleep 1
    done
done
at "$1" cluster nodes
