from .chart import Chart as Chart
from .chart import Pyramid as Pyramid
from .panel import Panel as Panel
from .report import write_report as write_report
