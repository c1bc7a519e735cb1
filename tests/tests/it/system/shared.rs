//! A folder of this machine that jobs may write to, so that what they did is seen from outside.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::fleet::Fleet;

/// The folder.
pub(crate) struct Shared {
    folder: PathBuf,
}

impl Shared {
    /// Makes the folder, and lets jobs on these nodes have it.
    pub(crate) fn with(fleet: &Fleet, nodes: &[String]) -> Self {
        let folder = fleet.path("shared");
        std::fs::create_dir_all(&folder).expect("the folder can be made");
        // Each attempt runs as a user of its own.
        std::fs::write(folder.join("notes"), "").expect("the folder is ours");
        for (path, mode) in [(folder.clone(), 0o777), (folder.join("notes"), 0o666)] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("it is ours");
        }
        let shared = Self { folder };
        let manifests: Vec<String> = nodes.iter().map(|node| shared.node(node, "")).collect();
        fleet.apply(&manifests.join("---\n"));
        shared
    }

    /// The configuration of a node that lets jobs have the folder, with further fields.
    pub(crate) fn node(&self, name: &str, fields: &str) -> String {
        format!(
            "apiVersion: windlass.dev/v1alpha1\nkind: NodeConfig\nmetadata: {{name: {name}}}\nspec:\n{fields}  sandbox:\n    \
             hostPaths: [{{path: {}, readOnly: false}}]\n",
            self.folder.display()
        )
    }

    /// A job that notes its start and its end in the folder, and that it is the only one of its name meanwhile.
    pub(crate) fn job(&self, name: &str, fields: &str, work: &str) -> String {
        let work = work.replace('\n', "\n      ");
        format!(
            "apiVersion: windlass.dev/v1alpha1\nkind: SandboxJob\nmetadata: {{name: {name}}}\nspec:\n{fields}  workspace:\n    \
             inputs: [{{path: shared, hostPath: {{path: {}, readOnly: false}}}}]\n  script:\n    source: |\n      \
             umask 0\n      exec 9>>/workspace/shared/$WINDLASS_JOB_NAME.lock\n      \
             flock --nonblock 9 || echo \"twice $WINDLASS_JOB_NAME\" >> /workspace/shared/notes\n      \
             echo \"start $WINDLASS_JOB_NAME\" >> /workspace/shared/notes\n      \
             {work}\n      \
             echo \"end $WINDLASS_JOB_NAME\" >> /workspace/shared/notes\n",
            self.folder.display()
        )
    }

    /// How often each job has noted a word.
    pub(crate) fn noted(&self, word: &str) -> BTreeMap<String, usize> {
        let notes = std::fs::read_to_string(self.folder.join("notes")).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for name in notes.lines().filter_map(|line| line.strip_prefix(word)?.strip_prefix(' ')) {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
        counts
    }
}
