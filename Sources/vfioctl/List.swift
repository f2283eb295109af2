import ArgumentParser
import JSON
import LinuxIO
import VFIOClient

struct List: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "ls", abstract: "Lists groups and devices, and who uses them.",
    discussion: """
      A group's line has its owner and mode, whether it is viable, and the processes that have it open; \
      the lines of its devices follow.
      """)

  @OptionGroup var server: ServerOptions
  @Flag(help: "Print the server's answer as JSON (protocol/topology.schema.json).")
  var json = false

  func run() throws {
    try server.withServer { vfio in
      if json { return print(try vfio.topologyDocument().text) }
      var table = Table(
        "GROUP", "OWNER", "MODE", "VIABLE", "IN USE BY", "DEVICE", "MODEL", "DRIVER")
      for group in try vfio.topology().groups {
        let users = group.users.map(processName).joined(separator: ", ")
        for (index, device) in group.devices.enumerated() {
          let isFirst = index == 0
          table.add(
            isFirst ? (group.hasIOMMU ? "\(group.id)" : "noiommu-\(group.id)") : "",
            isFirst ? userName(of: group.owner) ?? "\(group.owner)" : "",
            isFirst ? group.mode : "", isFirst ? (group.isViable ? "yes" : "no") : "",
            isFirst ? (users.isEmpty ? "-" : users) : "", device.address, device.model ?? "-",
            device.driver ?? "-")
        }
      }
      print(table.text)
    }
  }
}

/// Lines of columns, each as wide as its widest field.
struct Table {
  private var rows: [[String]]

  init(_ header: String...) { rows = [header] }

  mutating func add(_ row: String...) { rows.append(row) }

  var text: String {
    var widths = [Int](repeating: 0, count: rows[0].count)
    for row in rows {
      for (column, field) in row.enumerated() { widths[column] = max(widths[column], field.count) }
    }
    return rows.map { row in
      var line = ""
      for (column, field) in row.enumerated() {
        line += field
        if column < row.count - 1 {
          line += String(repeating: " ", count: widths[column] - field.count + 2)
        }
      }
      return line
    }.joined(separator: "\n")
  }
}
