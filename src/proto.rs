//! Wire types: etcd's client API, what nodes say to each other, and what the controller asks a node. They are
//! generated; the texts are in `proto/`. Written by hand is only what reads transactions inside transactions, which
//! the generated code does by recursion and not as deep as etcd does: [`nested`], and the gRPC codec that uses it.

pub mod codec;
pub mod nested;

#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod authpb {
    tonic::include_proto!("authpb");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
#[allow(missing_docs, clippy::all, clippy::pedantic, clippy::nursery)]
pub mod replcluster {
    tonic::include_proto!("replcluster");
}

/// All of the above as an encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
