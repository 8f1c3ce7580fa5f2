//! wip
fn main() -> anyhow::Result<()> {
    let guide = lab::Guide::start()?;
    println!("{}", guide.node1.ctl(&["status"])?);
    println!("{:?}", lab::http::get_many(&guide.client, lab::guide::VIP, 40));
    println!("{}", guide.node1.ctl(&["services"])?);
    println!("{}", guide.node1.ctl(&["services", "--stats"])?);
    println!("{}", guide.node1.ctl(&["vrrp"])?);
    println!("{}", guide.node1.ctl(&["map", "list"])?);
    println!("{}", guide.node1.ctl(&["map", "dump"])?);
    println!("{}", guide.node2.ctl(&["status"])?);
    println!("{}", guide.node1.log());
    Ok(())
}
