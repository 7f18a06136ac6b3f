//! The folder of one repository in Hugging Face's cache: `blobs/<etag>`, `snapshots/<commit>/<path>`, `refs/main`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hf_hub::HFClient;

use super::Hub;

/// One repository's folder.
pub struct Cache {
    root: PathBuf,
    folder: PathBuf,
}

impl Cache {
    /// The folder of `repo`, which need not exist yet.
    pub fn new(hub: &Hub, repo: &str) -> Self {
        Self { root: hub.cache.clone(), folder: hub.cache.join(format!("models--{}", repo.replace('/', "--"))) }
    }

    /// Content with this ETag.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// A file of the repository at a commit.
    pub fn snapshot(&self, commit: &str, path: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(path)
    }

    /// Makes the blob appear as a file of the snapshot.
    pub fn link(&self, commit: &str, path: &str, etag: &str) -> Result<()> {
        let pointer = self.snapshot(commit, path);
        let link = || {
            create_parent(&pointer)?;
            match fs::remove_file(&pointer) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => self.point(&pointer, Path::new(path).components().count(), etag),
            }
        };
        link().with_context(|| cannot_write(&pointer))
    }

    /// Relative, as Hugging Face's tools do, so that the cache can move.
    #[cfg(unix)]
    fn point(&self, pointer: &Path, depth: usize, etag: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(format!("{}blobs/{etag}", "../".repeat(depth + 1)), pointer)
    }

    /// A symbolic link takes privileges on Windows.
    #[cfg(not(unix))]
    fn point(&self, pointer: &Path, _depth: usize, etag: &str) -> io::Result<()> {
        fs::hard_link(self.blob(etag), pointer)
    }

    /// Records the commit that is `main` now.
    pub fn write_main(&self, commit: &str) -> Result<()> {
        let path = self.folder.join("refs").join("main");
        create_parent(&path).and_then(|()| fs::write(&path, commit)).with_context(|| cannot_write(&path))
    }

    /// The commit last seen as `main`, with the files of it that are here.
    pub async fn main(&self) -> Result<Option<(String, Vec<String>)>> {
        let client = HFClient::builder().cache_dir(&self.root).build()?;
        let scan = client.scan_cache().send().await.with_context(|| format!("cannot read {}", self.root.display()))?;
        let repo = scan.repos.into_iter().find(|repo| repo.repo_path == self.folder);
        let main = |name: &String| name == "main";
        let revision = repo.and_then(|repo| repo.revisions.into_iter().find(|revision| revision.refs.iter().any(main)));
        Ok(revision.map(|found| (found.commit_hash, found.files.into_iter().map(|file| file.file_name).collect())))
    }
}

/// Creates the directory a file is to lie in.
pub fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// What to say of a file that cannot be written.
pub fn cannot_write(path: &Path) -> String {
    format!("cannot write {} (free disk space or set HF_HOME to another directory)", path.display())
}
