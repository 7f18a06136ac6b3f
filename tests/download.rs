//! `-hf` against a Hub on this machine that breaks down in the ways networks do.

#[path = "../src/cli/download/mod.rs"]
#[allow(dead_code, reason = "the environment configures the program, not these tests")]
mod download;
mod hub;

use std::fs;
use std::path::{Path, PathBuf};

use download::{Hub, Reference};
use hub::{COMMIT, Fault, GIT_ETAG, REPO, Server, sha256};
use tempfile::TempDir;

const NAME: &str = "Model-Q4_K_M.gguf";

fn content() -> Vec<u8> {
    (0..100_000u32).map(|i| (i.wrapping_mul(i) >> 7) as u8).collect()
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub { endpoint: server.endpoint(), token: None, cache: cache.to_owned(), offline: false }
}

fn fetch(hub: &Hub, reference: &str) -> Result<PathBuf, String> {
    fetch_file(hub, reference, None)
}

/// The error as the program prints it.
fn fetch_file(hub: &Hub, reference: &str, file: Option<&str>) -> Result<PathBuf, String> {
    let reference: Reference = reference.parse().map_err(|error| format!("{error:#}"))?;
    hub.fetch(&reference, file).map_err(|error| format!("{error:#}"))
}

/// What is chosen from a repository of these files.
fn chosen(files: &[&str], reference: &str, file: Option<&str>) -> Result<String, String> {
    let files: Vec<(&str, &[u8])> = files.iter().map(|path| (*path, path.as_bytes())).collect();
    let (server, cache) = (Server::start(&files), TempDir::new().unwrap());
    let path = fetch_file(&hub(&server, cache.path()), reference, file)?;
    Ok(fs::read_to_string(path).unwrap())
}

fn blobs(cache: &Path) -> Vec<String> {
    let directory = cache.join("models--org--repo").join("blobs");
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_model_arrives_in_the_layout_of_hugging_face() {
    let (server, cache) = (Server::start(&[("README.md", b"x"), (NAME, &content())]), TempDir::new().unwrap());
    let path = fetch(&hub(&server, cache.path()), REPO).unwrap();
    let folder = cache.path().join("models--org--repo");
    assert_eq!(path, folder.join("snapshots").join(COMMIT).join(NAME));
    assert_eq!(fs::read(&path).unwrap(), content());
    assert_eq!(fs::read_to_string(folder.join("refs").join("main")).unwrap(), COMMIT);
    assert_eq!(blobs(cache.path()), [sha256(&content())]);
    #[cfg(unix)]
    assert_eq!(fs::read_link(&path).unwrap(), Path::new("../../blobs").join(sha256(&content())));
}

#[test]
fn a_second_fetch_transfers_nothing() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let hub = hub(&server, cache.path());
    let first = fetch(&hub, REPO).unwrap();
    assert_eq!(fetch(&hub, REPO).unwrap(), first);
    assert_eq!(server.transfers().len(), 1);
    // A new commit with the same file: the snapshot is gone, the content is not.
    fs::remove_file(&first).unwrap();
    assert_eq!(fs::read(fetch(&hub, REPO).unwrap()).unwrap(), content());
    assert_eq!(server.transfers().len(), 1);
}

#[test]
fn the_quant_decides_the_file() {
    let files = [
        "imatrix.gguf",
        "mmproj-Model-Q4_K_M.gguf",
        "Model-BF16.gguf",
        "Model-IQ4_XS.gguf",
        "Model-Q4_K_M.gguf",
        "Model-Q4_K_S.gguf",
        "Model-UD-Q5_K_XL.gguf",
        "q8/model.q8_0.gguf",
    ];
    for (reference, expected) in [
        ("org/repo", "Model-Q4_K_M.gguf"),
        ("org/repo:q4_k_m", "Model-Q4_K_M.gguf"),
        ("org/repo:IQ4_XS", "Model-IQ4_XS.gguf"),
        ("org/repo:bf16", "Model-BF16.gguf"),
        ("org/repo:Q5_K_XL", "Model-UD-Q5_K_XL.gguf"),
        ("org/repo:UD-Q5_K_XL", "Model-UD-Q5_K_XL.gguf"),
        ("org/repo:Q8_0", "q8/model.q8_0.gguf"),
    ] {
        assert_eq!(chosen(&files, reference, None).as_deref(), Ok(expected), "{reference}");
    }
    let error = chosen(&files, "org/repo:Q6_K", None).unwrap_err();
    assert_eq!(error, "org/repo: no quant Q6_K; available: BF16, IQ4_XS, Q4_K_M, Q4_K_S, Q5_K_XL, Q8_0");
    let error = chosen(&files, "org/repo:Q4_K", None).unwrap_err();
    assert_eq!(error, "org/repo: quant Q4_K could be any of Q4_K_M, Q4_K_S; name one");
}

#[test]
fn without_the_default_quant_the_first_model_is_taken() {
    let files = ["mmproj-F16.gguf", "z-Q8_0.gguf", "a-Q6_K.gguf", "config.json"];
    assert_eq!(chosen(&files, REPO, None).as_deref(), Ok("a-Q6_K.gguf"));
    for reference in [REPO, "org/repo:Q8_0"] {
        let error = chosen(&["model.safetensors", "mmproj.gguf"], reference, None).unwrap_err();
        assert_eq!(error, "org/repo: no GGUF model; choose a repository with .gguf files");
    }
}

#[test]
fn a_named_file_is_taken() {
    let files = ["Model-Q4_K_M.gguf", "deep/Model-Q8_0.gguf"];
    assert_eq!(chosen(&files, REPO, Some("deep/Model-Q8_0.gguf")).as_deref(), Ok("deep/Model-Q8_0.gguf"));
    let error = chosen(&files, REPO, Some("Model-Q8_0.gguf")).unwrap_err();
    assert_eq!(error, "org/repo: no model file Model-Q8_0.gguf; available: Model-Q4_K_M.gguf, deep/Model-Q8_0.gguf");
}

#[test]
fn a_path_out_of_the_cache_is_never_taken() {
    let error = chosen(&["../../Model-Q4_K_M.gguf", "/tmp/Model-Q4_K_M.gguf"], REPO, None).unwrap_err();
    assert_eq!(error, "org/repo: no GGUF model; choose a repository with .gguf files");
}

#[test]
fn all_parts_of_a_split_model_arrive() {
    let parts = ["Q8_0/Model-Q8_0-00001-of-00002.gguf", "Q8_0/Model-Q8_0-00002-of-00002.gguf"];
    for file in [None, Some(parts[1])] {
        let (server, cache) = (Server::start(&[(parts[1], b"two"), (parts[0], b"one")]), TempDir::new().unwrap());
        let first = fetch_file(&hub(&server, cache.path()), "org/repo:Q8_0", file).unwrap();
        assert!(first.ends_with(parts[0]), "{}", first.display());
        assert_eq!(fs::read(&first).unwrap(), b"one");
        assert_eq!(fs::read(first.with_file_name("Model-Q8_0-00002-of-00002.gguf")).unwrap(), b"two");
    }
    let error = chosen(&parts[..1], REPO, None).unwrap_err();
    assert_eq!(error, format!("org/repo: part {} of the split model is missing", parts[1]));
}

#[test]
fn a_dropped_connection_is_resumed_within_the_run() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    server.faults().content.extend([Fault::Cut(40_000), Fault::Status(503), Fault::Cut(20_000)]);
    let path = fetch(&hub(&server, cache.path()), REPO).unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
    let ranges = [None, Some("bytes=40000-"), Some("bytes=40000-"), Some("bytes=60000-")];
    assert_eq!(server.transfers(), ranges.map(|range| range.map(str::to_owned)));
}

#[test]
fn an_interrupted_run_is_resumed_by_the_next() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let hub = hub(&server, cache.path());
    server.faults().content.extend([Fault::Cut(70_000), Fault::Status(403)]);
    fetch(&hub, REPO).unwrap_err();
    assert_eq!(blobs(cache.path()), [sha256(&content()) + ".incomplete"]);
    let path = fetch(&hub, REPO).unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
    assert_eq!(server.transfers().last(), Some(&Some("bytes=70000-".to_owned())));
    assert_eq!(blobs(cache.path()), [sha256(&content())]);
}

#[test]
fn a_transfer_that_never_advances_is_given_up() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    server.faults().content.extend([Fault::Cut(30_000)].into_iter().chain((0..20).map(|_| Fault::Cut(0))));
    let error = fetch(&hub(&server, cache.path()), REPO).unwrap_err();
    assert!(error.contains("stopped at 30000 of 100000 bytes; run again to resume"), "{error}");
    assert!(server.transfers().len() < 10, "{:?}", server.transfers());
}

#[test]
fn a_server_without_ranges_starts_over() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    server.faults().ignores_ranges = true;
    server.faults().content.push_back(Fault::Cut(40_000));
    let path = fetch(&hub(&server, cache.path()), REPO).unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
}

#[test]
fn wrong_content_is_deleted() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    server.faults().wrong_checksum = true;
    let error = fetch(&hub(&server, cache.path()), REPO).unwrap_err();
    assert!(error.starts_with(&format!("{NAME}: checksum mismatch: expected SHA-256 ")), "{error}");
    assert!(error.contains(&sha256(&content())), "{error}");
    assert_eq!(blobs(cache.path()), [""; 0]);
    assert!(!cache.path().join("models--org--repo/snapshots").exists());
}

#[test]
fn a_file_without_lfs_arrives() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    server.faults().without_lfs = true;
    let path = fetch(&hub(&server, cache.path()), REPO).unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
    assert_eq!(blobs(cache.path()), [GIT_ETAG]);
}

#[test]
fn a_renamed_repository_is_followed() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let path = fetch(&hub(&server, cache.path()), "old/name").unwrap();
    assert_eq!(fs::read(path).unwrap(), content());
}

#[test]
fn offline_uses_the_cache_alone() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let online = hub(&server, cache.path());
    let offline = Hub { offline: true, ..online.clone() };
    let error = fetch(&offline, REPO).unwrap_err();
    assert!(error.starts_with("org/repo is not in the cache "), "{error}");
    assert!(error.ends_with("run once without --offline and HF_HUB_OFFLINE"), "{error}");

    let path = fetch(&online, REPO).unwrap();
    let requests = server.requests().len();
    assert_eq!(fetch(&offline, REPO).unwrap(), path);
    let error = fetch(&offline, "org/repo:Q8_0").unwrap_err();
    assert!(error.ends_with("(offline): no quant Q8_0; available: Q4_K_M"), "{error}");
    assert_eq!(server.requests().len(), requests, "an offline run must not send anything");
}

#[test]
fn the_token_is_for_the_endpoint_alone() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let hub = Hub { token: Some("hf_secret".into()), ..hub(&server, cache.path()) };
    fetch(&hub, REPO).unwrap();
    assert_eq!(server.transfers().len(), 1);
    for request in server.requests() {
        let expected = (!request.at_cdn).then_some("Bearer hf_secret");
        assert_eq!(request.authorization.as_deref(), expected, "{request:?}");
    }
}

#[test]
fn a_gated_repository_asks_for_a_token() {
    for status in [401, 403] {
        let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
        let hub = hub(&server, cache.path());
        server.faults().resolve = Some(status);
        for _ in ["content refused", "listing refused"] {
            let error = fetch(&hub, REPO).unwrap_err();
            let advice = format!("accept its terms at {}/org/repo, then set HF_TOKEN", server.endpoint());
            assert!(error.ends_with(&format!("org/repo is gated or private (or misspelt): {advice}")), "{error}");
            assert_eq!(error.lines().count(), 1, "{error}");
            server.faults().listing = Some(status);
        }
        assert_eq!(server.transfers().len(), 0);
    }
}

#[test]
fn what_does_not_exist_is_named() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let hub = hub(&server, cache.path());
    let error = fetch(&hub, "org/other").unwrap_err();
    assert!(error.starts_with("org/other does not exist on http://127.0.0.1:"), "{error}");
    server.faults().resolve = Some(404);
    let error = fetch(&hub, REPO).unwrap_err();
    assert!(error.contains(NAME) && error.ends_with("does not exist"), "{error}");
}

#[test]
fn a_hub_that_is_down_is_one_line() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let hub = hub(&server, cache.path());
    server.faults().listing = Some(500);
    let error = fetch(&hub, REPO).unwrap_err();
    assert!(error.starts_with("cannot list org/repo on http://127.0.0.1:") && error.contains("500"), "{error}");
    drop(server);
    let error = fetch(&hub, REPO).unwrap_err();
    assert!(error.contains("refused") && error.ends_with("a cached model runs with --offline"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn an_unwritable_cache_is_one_line() {
    let (server, directory) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let file = directory.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let error = fetch(&hub(&server, &file), REPO).unwrap_err();
    assert!(error.starts_with("cannot write ") && error.contains("set HF_HOME"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert_eq!(server.transfers().len(), 0);
}

#[test]
fn two_processes_do_not_write_one_file() {
    let (server, cache) = (Server::start(&[(NAME, &content())]), TempDir::new().unwrap());
    let directory = cache.path().join("models--org--repo").join("blobs");
    fs::create_dir_all(&directory).unwrap();
    let other = fs::File::create(directory.join(sha256(&content()) + ".incomplete")).unwrap();
    other.lock().unwrap();
    let error = fetch(&hub(&server, cache.path()), REPO).unwrap_err();
    assert!(error.starts_with("another process is fetching "), "{error}");
    drop(other);
    fetch(&hub(&server, cache.path()), REPO).unwrap();
}

#[test]
fn a_malformed_reference_is_refused() {
    for text in ["repo", "org/repo/file", "/repo", "org/", "org/repo:", "org/re po", "../repo", "org/..", ""] {
        let error = text.parse::<Reference>().unwrap_err().to_string();
        assert!(error.starts_with("expected org/repo or org/repo:quant"), "{text}: {error}");
        assert!(error.ends_with(&format!("found {text:?}")), "{text}: {error}");
    }
}
