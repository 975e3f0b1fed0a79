//! Generated protocol code is what the protocol says: it is made again and compared. Nobody needs `protoc`.
//!
//! After a change of the protocol: `SPRINGHOUSE_GENERATE=1 cargo test --workspace generated`.

use std::path::{Path, PathBuf};

use prost::Message;

fn serving(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../serving").join(part)
}

#[test]
fn the_generated_code_is_what_the_protocol_says() {
    let made = tempfile::tempdir().expect("a folder");
    let files = protox::compile(["inference.proto"], [serving("proto")]).expect("the protocol compiles");
    std::fs::write(made.path().join("descriptors.bin"), files.encode_to_vec()).expect("writable");
    tonic_prost_build::configure()
        .build_transport(false)
        .bytes(".")
        .codec_path("crate::decoding::BoundedCodec")
        .out_dir(made.path())
        .compile_fds(files)
        .expect("the protocol generates");
    for name in ["inference.rs", "descriptors.bin"] {
        let (new, old) = (made.path().join(name), serving("src/generated").join(name));
        if std::env::var_os("SPRINGHOUSE_GENERATE").is_some() {
            std::fs::copy(&new, &old).expect("writable");
        }
        let same = std::fs::read(&new).expect("made") == std::fs::read(&old).unwrap_or_default();
        assert!(same, "serving/src/generated/{name} is out of date: run with SPRINGHOUSE_GENERATE=1");
    }
}
