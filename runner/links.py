"""What a round moves over each link of a deployment in which clients serve clusters."""

from collections.abc import Mapping, Sequence

from fedsweep.records import TaskRecord

MB = 2.0**20
TRAVELS = "travels"
"""Record of a message's content that says how many bytes of an ArrayRecord go over its client's
link, by the record's name, where these are not its own: what is sent compressed is opened once, at
the server, for all clients."""
CLUSTERING_QUERIES = ("query.losses", "query.signature", "query.subspace", "query.sketch")


def mb_by_link(
    tasks: Sequence[TaskRecord],
    assignment: Mapping[int, int],
    servers: Mapping[int, int],
    read_centrally: bool,
    several_sent: bool = True,
) -> dict[str, float]:
    """Return the mebibytes of a round's models by link, both ways.

    Here all bytes pass through the driver.

    Parameters
    ----------
    tasks : sequence of TaskRecord
        The round's tasks, queries included.
    assignment, servers : mapping
        Node -> cluster, and cluster -> node that serves it.
    read_centrally : bool
        The clients' models are all read at the global server, because it clusters or places
        newcomers.
    several_sent : bool
        Clients may be sent several models; where none ever is, how large replies are says nothing.

    Returns
    -------
    dict
        ``client_server``: between a member and its cluster's server; a server's own messages stay
        at home. ``client_global``: between clients and the global server, where no cluster's server
        stands between them. ``server_global``: clusters' models on their way to the global server
        and, where the members' models are read there, these on their way to the servers.
        ``broadcast``: messages with several models (IFCA's K) to clients.
    """
    moved = dict.fromkeys(("client_server", "client_global", "server_global", "broadcast"), 0)
    model = max((task.bytes_out for task in tasks if task.message_type == "train"), default=0)
    for task in tasks:
        if task.message_type == "query.aggregate":
            moved["server_global"] += task.bytes_out + (task.bytes_in if read_centrally else 0)
        elif task.message_type in CLUSTERING_QUERIES or not task.message_type.startswith("query"):
            server = servers.get(assignment.get(task.node_id, -1))
            central = (
                read_centrally and task.message_type == "train"
            ) or task.message_type in CLUSTERING_QUERIES
            link = "client_global" if server is None or central else "client_server"
            several = several_sent and 0 < 2 * model <= task.bytes_in
            if link == "client_global" or server != task.node_id:
                moved[link] += task.bytes_out
                moved[link] += 0 if several else task.bytes_in
            moved["broadcast"] += task.bytes_in if several else 0
    return {link: total / MB for link, total in moved.items()}
