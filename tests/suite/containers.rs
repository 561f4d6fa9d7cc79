//! Nodes in containers: each is process 1 of its own pid namespace, and only the register is shared.

use super::cluster::{Cluster, put_request};

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_restart_with_the_pid_they_had_survive_until_the_last() {
    let Some(mut cluster) = Cluster::start_in_containers(3).await else { return };
    let addresses = cluster.addresses();
    let client = cluster.client(&addresses);
    client.put(put_request("key", "0")).await.unwrap();
    for (round, address) in addresses.iter().enumerate() {
        cluster.nodes.get_mut(address).unwrap().kill();
        // Not through the killed one: what its connection was given last has an unknown fate.
        let others: Vec<String> = addresses.iter().filter(|other| *other != address).cloned().collect();
        let client = cluster.client(&others);
        client.put(put_request("key", &format!("{round} without {address}"))).await.unwrap();
        cluster.spawn_in_container(address);
        cluster.wait_in_sync().await;
    }
    // Every process has the pid of one that is proved dead. Now all but one die.
    for (dead, address) in addresses[..2].iter().enumerate() {
        cluster.nodes.get_mut(address).unwrap().kill();
        let client = cluster.client(&addresses[dead + 1..]);
        client.put(put_request("key", "last")).await.unwrap();
    }
    let last = cluster.client(&addresses[2..]);
    let found = last.put(put_request("key", "after")).await.unwrap();
    assert!(found.header.is_some());
}
