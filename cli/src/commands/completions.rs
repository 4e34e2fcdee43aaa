//! `vaecf completions` and `vaecf man`: what a package puts beside the binary.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use vaecf_core::{Error, files};

use super::Context;
use crate::{
    options::Cli,
    output::{Done, print},
};

/// Print completions for a shell.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  vaecf completions bash > ~/.local/share/bash-completion/completions/vaecf
  vaecf completions zsh > ~/.zfunc/_vaecf
  vaecf completions fish > ~/.config/fish/completions/vaecf.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

impl Completions {
    pub(crate) fn run(&self) -> Done {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "vaecf", &mut text);
        print(String::from_utf8_lossy(&text))
    }
}

/// Write the man pages, one a command, into a folder.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  vaecf man ~/.local/share/man/man1")]
pub(crate) struct Man {
    /// The folder, which is made where it is missing
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Man {
    pub(crate) fn run(&self, context: &Context) -> Done {
        std::fs::create_dir_all(&self.folder).map_err(|e| Error::io("creating", &self.folder, &e))?;
        let mut all = Cli::command();
        all.build();
        let commands: Vec<_> = all.get_subcommands().cloned().map(|c| (format!("vaecf-{}", c.get_name()), c)).collect();
        for (name, command) in std::iter::once(("vaecf".to_owned(), all)).chain(commands) {
            let path = self.folder.join(format!("{name}.1"));
            let failed = |e: &std::io::Error| Error::io("writing", &path, e);
            let page = clap_mangen::Man::new(command).title(name);
            files::write_atomic(&path, |to| page.render(to).map_err(|e| failed(&e)))?;
        }
        context.ui.note(format_args!("written to {}", self.folder.display()));
        Ok(())
    }
}
