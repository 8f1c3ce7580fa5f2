//! nginx from Debian, as a real server and as the sorry server.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;

use crate::{Lab, Node, Process, network::INTERFACE, wait};

/// Ports of the upload backend inside a real server's own namespace.
const SINK: u16 = 8099;
/// Bytes a second at which nginx sends the file `slow`.
pub const SLOW: u32 = 500_000;

/// A running nginx with one page.
pub struct WebServer {
    node: Node,
    directory: PathBuf,
    process: Option<Process>,
}

impl WebServer {
    /// Starts nginx on every address of `node`, port 80. `GET /` answers `page`; uploads to
    /// `/upload` are stored as files.
    pub fn start(lab: &Lab, node: &Node, page: &str) -> Result<Self> {
        let directory = lab.directory().join(format!("{}-nginx", node.name));
        for folder in ["www", "uploads"] {
            fs::create_dir_all(directory.join(folder))?;
        }
        // nginx's workers are another account.
        run_chmod(lab.directory(), 0o755)?;
        run_chmod(&directory.join("uploads"), 0o777)?;
        fs::write(directory.join("www/index.html"), format!("{page}\n"))?;
        let mut server = Self {
            node: node.clone(),
            directory,
            process: None,
        };
        server.resume(lab)?;
        Ok(server)
    }

    /// Where it runs.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Starts it again after [`WebServer::stop`].
    pub fn resume(&mut self, lab: &Lab) -> Result<()> {
        let (node, directory) = (&self.node, &self.directory);
        self.process = Some(start_nginx(lab, node, directory, &servers(directory))?);
        wait::until_true("nginx answers", Duration::from_secs(10), || {
            node.within(|| crate::http::get([127, 0, 0, 1].into(), Duration::from_secs(1)).is_ok())
        })
    }

    /// Stops nginx; connections to it are refused from then on.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(process) = self.process.take() {
            process.stop()?;
        }
        Ok(())
    }

    /// A file that it serves as `/NAME`; one called `slow` at [`SLOW`] bytes a second. (A client's own limit
    /// does not make a transfer last: curl's lets megabytes pass at once.)
    pub fn publish(&self, name: &str, content: &[u8]) -> Result<()> {
        Ok(fs::write(self.directory.join("www").join(name), content)?)
    }

    /// Takes that file away again.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(self.directory.join("www").join(name))?)
    }

    /// Contents of everything uploaded.
    pub fn uploads(&self) -> Result<Vec<Vec<u8>>> {
        fs::read_dir(self.directory.join("uploads"))?
            .map(|entry| Ok(fs::read(entry?.path())?))
            .collect()
    }
}

fn run_chmod(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

/// Starts nginx with these servers, blocks of its language; all else that it needs is in `directory`.
pub fn start_nginx(lab: &Lab, node: &Node, directory: &Path, servers: &str) -> Result<Process> {
    fs::create_dir_all(directory.join("tmp"))?;
    // Its workers are another account.
    run_chmod(&directory.join("tmp"), 0o777)?;
    let d = directory.display().to_string();
    let config = format!(
        "daemon off; worker_processes 1; pid {d}/nginx.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  access_log off; default_type text/plain; sendfile on;
  client_body_temp_path {d}/tmp; proxy_temp_path {d}/tmp;
  fastcgi_temp_path {d}/tmp; uwsgi_temp_path {d}/tmp; scgi_temp_path {d}/tmp;
{servers}
}}
"
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, config)?;
    let arguments = ["-p", &d, "-c", &file.to_string_lossy(), "-e", "stderr"];
    let program = "/usr/sbin/nginx".as_ref();
    Process::start(lab, node, "nginx", program, &arguments)
}

/// The page and its files, and the upload's backend.
fn servers(directory: &Path) -> String {
    let d = directory.display();
    format!(
        "  server {{
    listen 80; listen [::]:80; root {d}/www;
    client_max_body_size 64m; client_body_temp_path {d}/uploads;
    location /slow {{ limit_rate {SLOW}; }}
    location /upload {{
      client_body_in_file_only on;
      proxy_pass_request_body off; proxy_set_header Content-Length 0;
      proxy_pass http://127.0.0.1:{SINK};
    }}
  }}
  server {{ listen 127.0.0.1:{SINK}; location / {{ return 200 stored; }} }}"
    )
}

/// Makes `node` a real server for `vip` as the deployment guide does: the address on `lo`, and ARP
/// silent about it.
pub fn accept_vip(node: &Node, vip: &str) -> Result<()> {
    for (key, value) in [
        ("arp_ignore", "1"),
        ("arp_announce", "2"),
        ("rp_filter", "0"),
    ] {
        for interface in ["all", INTERFACE, "lo"] {
            node.sysctl(&format!("ipv4.conf.{interface}.{key}"), value)?;
        }
    }
    node.ip(&["address", "add", &format!("{vip}/32"), "dev", "lo"])
        .map(|_| ())
}
