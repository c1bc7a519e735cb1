//! The agent's settings as flags and environment variables. The environment is read nowhere else.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;
use windlass_crds::names;
use windlass_crds::protocol::bounds::reserved_label;

/// Settings of the agent.
#[derive(Args, Clone)]
pub struct AgentArgs {
    /// Join with this token, as printed by `windlass join-token create`. Needed once; later starts use the state folder.
    #[arg(
        long,
        env = "WINDLASS_JOIN",
        hide_env_values = true,
        value_name = "TOKEN",
        conflicts_with = "join_file"
    )]
    pub join: Option<String>,

    /// Join with the token in this file.
    #[arg(long, env = "WINDLASS_JOIN_FILE", value_name = "PATH")]
    pub join_file: Option<PathBuf>,

    /// The folder for the node's identity, ledger, outbox and workspaces. Without it `/var/lib/windlass/agent` for root,
    /// else `.local/state/windlass/agent` in the home folder.
    #[arg(long, env = "WINDLASS_AGENT_STATE_DIR", value_name = "PATH")]
    pub state_dir: Option<PathBuf>,

    /// The cgroup below which steps get theirs, as in `/proc/self/cgroup`; without it the agent's own, or that above it.
    #[arg(long, env = "WINDLASS_AGENT_CGROUP_PARENT", value_name = "CGROUP")]
    pub cgroup_parent: Option<String>,

    /// The socket of Podman; without it the usual one of the agent's user, if it is there.
    #[arg(long, env = "WINDLASS_AGENT_PODMAN_SOCKET", value_name = "PATH")]
    pub podman_socket: Option<PathBuf>,

    /// The socket of Docker; without it the usual one of the agent's user, if it is there.
    #[arg(long, env = "WINDLASS_AGENT_DOCKER_SOCKET", value_name = "PATH")]
    pub docker_socket: Option<PathBuf>,

    /// A folder in memory (tmpfs) for the secrets of jobs that run. Without it `/run` for root, else `$XDG_RUNTIME_DIR`, else `/dev/shm`.
    #[arg(long, env = "WINDLASS_AGENT_RUNTIME_DIR", value_name = "PATH")]
    pub runtime_dir: Option<PathBuf>,

    /// The folder in memory that the system gives to this user.
    #[arg(long, env = "XDG_RUNTIME_DIR", value_name = "PATH", hide = true)]
    pub user_runtime_dir: Option<PathBuf>,

    /// A file with the key that seals secrets in the ledger and the outbox, as `windlass secret new-key` makes it. Without it the systemd
    /// credential `windlass-node-key`, else one in memory, and jobs with secrets are not carried on after a reboot.
    #[arg(long, env = "WINDLASS_AGENT_SECRETS_KEY_FILE", value_name = "PATH")]
    pub secrets_key_file: Option<PathBuf>,

    /// The folder with the credentials that systemd gives.
    #[arg(long, env = "CREDENTIALS_DIRECTORY", value_name = "PATH", hide = true)]
    pub credentials_directory: Option<PathBuf>,

    /// The node's name; without it the host's.
    #[arg(long, env = "WINDLASS_NODE_NAME", value_name = "NAME")]
    pub name: Option<String>,

    /// A label of the node; may be given several times.
    #[arg(long = "label", env = "WINDLASS_NODE_LABELS", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    pub labels: Vec<(String, String)>,

    /// How many attempts run at once where the node's configuration does not say; without it one for each core.
    #[arg(long, env = "WINDLASS_AGENT_CONCURRENCY", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub concurrency: Option<u32>,

    /// Free space of the state folder's disk in MiB below which the node takes no more work.
    #[arg(long, env = "WINDLASS_AGENT_MIN_FREE_MIB", value_name = "MIB", default_value_t = 256)]
    pub min_free_mib: u64,

    /// How much of uploaded inputs is kept for later jobs, in MiB.
    #[arg(long, env = "WINDLASS_AGENT_INPUT_CACHE_MIB", value_name = "MIB", default_value_t = 2048)]
    pub input_cache_mib: u64,

    /// How much of artifacts may wait for the controller, in MiB; beyond that the oldest are dropped.
    #[arg(long, env = "WINDLASS_AGENT_ARTIFACTS_MIB", value_name = "MIB", default_value_t = 4096, value_parser = clap::value_parser!(u64).range(1..=1 << 30))]
    pub artifacts_mib: u64,
}

impl std::fmt::Debug for AgentArgs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentArgs")
            .field("join", &self.join.as_ref().map(|_| "…"))
            .field("join_file", &self.join_file)
            .field("state_dir", &self.state_dir)
            .field("cgroup_parent", &self.cgroup_parent)
            .field("podman_socket", &self.podman_socket)
            .field("docker_socket", &self.docker_socket)
            .field("runtime_dir", &self.runtime_dir)
            .field("secrets_key_file", &self.secrets_key_file)
            .field("name", &self.name)
            .field("labels", &self.labels)
            .field("concurrency", &self.concurrency)
            .field("min_free_mib", &self.min_free_mib)
            .field("input_cache_mib", &self.input_cache_mib)
            .field("artifacts_mib", &self.artifacts_mib)
            .finish()
    }
}

impl AgentArgs {
    /// Where a folder in memory may be, best first.
    pub(crate) fn memory_places(&self) -> Vec<PathBuf> {
        if let Some(given) = &self.runtime_dir {
            return vec![given.clone()];
        }
        let own = if rustix::process::geteuid().is_root() {
            Some(PathBuf::from("/run"))
        } else {
            self.user_runtime_dir.clone()
        };
        own.into_iter().chain([PathBuf::from("/dev/shm")]).collect()
    }

    /// The file with the node's key, where there is one.
    pub(crate) fn key_file(&self) -> Option<PathBuf> {
        let credential = self.credentials_directory.as_ref().map(|folder| folder.join("windlass-node-key"));
        self.secrets_key_file.clone().or(credential.filter(|file| file.exists()))
    }

    /// The labels as a map; of a key that is given twice the last value counts.
    pub(crate) fn label_map(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) =
        text.split_once('=').ok_or_else(|| format!("`{text}` must have the form KEY=VALUE"))?;
    if key.is_empty() {
        return Err(format!("`{text}` has no key before the `=`"));
    }
    names::check_label_key(key).map_err(|error| format!("the key `{key}` {error}"))?;
    if let Some(reason) = reserved_label(key) {
        return Err(reason);
    }
    names::check_label_value(value).map_err(|error| format!("the value `{value}` of `{key}` {error}"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser};

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: AgentArgs,
    }

    #[test]
    fn the_flags_are_sound_and_a_token_is_never_shown() {
        Cli::command().debug_assert();
        let line = [
            "agent",
            "--join",
            "wl1.hunter2",
            "--label",
            "a=1",
            "--label",
            "example.org/b=x",
            "--concurrency",
            "3",
        ];
        let args = Cli::parse_from(line).args;
        assert_eq!(args.label_map(), crate::testing::labels(&[("a", "1"), ("example.org/b", "x")]));
        assert_eq!(args.concurrency, Some(3));
        assert!(!format!("{args:?}").contains("hunter2"));
    }

    #[test]
    fn wrong_values_are_refused() {
        for wrong in [
            &["--label", "novalue"][..],
            &["--label", "=x"],
            &["--label", "b=x=y"],
            &["--label", "not a key=x"],
            &["--label", "windlass.dev/arch=sparc"],
            &["--concurrency", "0"],
            &["--join", "a", "--join-file", "b"],
        ] {
            let line = ["agent"].iter().chain(wrong);
            assert!(Cli::try_parse_from(line).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_reserved_label_is_refused_by_name() {
        let line = ["agent", "--label", "windlass.dev/node=other"];
        let refused = Cli::try_parse_from(line).err().expect("it is refused").to_string();
        assert!(refused.contains("windlass.dev/node") && refused.contains("reserved"), "{refused}");
    }
}
